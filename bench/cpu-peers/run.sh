#!/bin/sh
# Makes the peers, measures them and ours in turns, writes a report. README.md beside this file says more.
#
#   bench/cpu-peers/run.sh [prepare] [measure] [report] [--only SUBJECT,…] [--rounds N] [--quick] [--resume] [--scratch FOLDER]
exec python3 -B "$(dirname "$0")/main.py" "$@"
