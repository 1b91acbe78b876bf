//! Who gets the events of the sequences that live. The engine thread works with it between the executor's calls; when the executor keeps that
//! thread, whoever declares the engine dead can end every request all the same.

use crate::{Event, Failure};
use powertrain_scheduler::SequenceId;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::mpsc::UnboundedSender;

/// Who a sequence's events go to.
pub(crate) struct Client {
    pub(crate) sequence: SequenceId,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) queued: Instant,
    pub(crate) scheduled: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
}

impl Client {
    pub(crate) fn send(&self, event: Event) {
        // A receiver that is gone has sent its cancellation.
        let _ = self.events.send(event);
    }
}

/// All of them, by [`SequenceId::slot`].
#[derive(Default)]
pub(crate) struct Clients(Mutex<Table>);

#[derive(Default)]
struct Table {
    slots: Vec<Option<Client>>,
    /// Why nobody is served any more.
    death: Option<String>,
}

impl Clients {
    /// A dead engine's new client hears so at once.
    pub(crate) fn insert(&self, client: Client) {
        let mut table = self.table();
        if let Some(reason) = &table.death {
            client.send(Event::Failed(Failure::Engine(reason.clone())));
            return;
        }
        let slot = client.sequence.slot();
        if table.slots.len() <= slot {
            table.slots.resize_with(slot + 1, || None);
        }
        table.slots[slot] = Some(client);
    }

    pub(crate) fn take(&self, sequence: SequenceId) -> Option<Client> {
        let mut table = self.table();
        table.slots.get_mut(sequence.slot())?.take_if(|client| client.sequence == sequence)
    }

    /// Does something with a client if it is there.
    pub(crate) fn with(&self, sequence: SequenceId, act: impl FnOnce(&mut Client)) {
        let mut table = self.table();
        let client = table.slots.get_mut(sequence.slot()).and_then(Option::as_mut);
        if let Some(client) = client.filter(|client| client.sequence == sequence) {
            act(client);
        }
    }

    pub(crate) fn is_alive(&self, sequence: SequenceId) -> bool {
        let table = self.table();
        table.slots.get(sequence.slot()).and_then(Option::as_ref).is_some_and(|client| client.sequence == sequence)
    }

    pub(crate) fn sequences(&self) -> Vec<SequenceId> {
        self.table().slots.iter().flatten().map(|client| client.sequence).collect()
    }

    /// Takes all; those to come will be told the reason.
    pub(crate) fn close(&self, reason: &str) -> Vec<Client> {
        let mut table = self.table();
        table.death.get_or_insert_with(|| reason.to_owned());
        table.slots.iter_mut().filter_map(Option::take).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
