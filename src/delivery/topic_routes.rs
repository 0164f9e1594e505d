//! Which connections rows of a topic are passed to.
//!
//! Only connections with topics are here, so that others cost nothing. An entry costs 12
//! bytes per connection and topic, and a topic's name is stored once.

use std::collections::HashMap;

use crate::domain::topic::Topic;

/// A connection's place among the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey(u32);

/// Maps topics to connections, of which it stores `M`.
#[derive(Debug)]
pub struct TopicRoutes<M> {
    numbers: HashMap<Topic, u32>,
    /// By number. Those without connections are reused.
    topics: Vec<RoutedTopic>,
    free_topics: Vec<u32>,
    /// By key.
    connections: Vec<Option<RoutedConnection<M>>>,
    free_connections: Vec<u32>,
}

#[derive(Debug)]
struct RoutedTopic {
    name: Topic,
    connections: Vec<RouteKey>,
}

#[derive(Debug)]
struct RoutedConnection<M> {
    mailbox: M,
    /// In the order of topics.
    places: Vec<RoutePlace>,
}

/// Where a connection is in the list of a topic. Removing it from there is the same work
/// whether the topic has ten connections or a hundred thousand.
#[derive(Clone, Copy, Debug)]
struct RoutePlace {
    topic: u32,
    index: u32,
}

impl<M> Default for TopicRoutes<M> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            topics: Vec::new(),
            free_topics: Vec::new(),
            connections: Vec::new(),
            free_connections: Vec::new(),
        }
    }
}

impl<M> TopicRoutes<M> {
    /// Adds a connection without topics.
    pub fn connect(&mut self, mailbox: M) -> RouteKey {
        let connection = Some(RoutedConnection {
            mailbox,
            places: Vec::new(),
        });
        if let Some(key) = self.free_connections.pop() {
            self.connections[key as usize] = connection;
            RouteKey(key)
        } else {
            self.connections.push(connection);
            RouteKey(self.connections.len() as u32 - 1)
        }
    }

    /// The name as it is stored here, so that connections can share it.
    pub fn name(&self, topic: &Topic) -> Option<&Topic> {
        let (name, _) = self.numbers.get_key_value(topic)?;
        Some(name)
    }

    /// Passes rows of the topic to the connection. Returns whether they were not before.
    pub fn add(&mut self, key: RouteKey, topic: &Topic) -> bool {
        let number = self.number(topic);
        let Some(connection) = &mut self.connections[key.0 as usize] else {
            return false;
        };
        let places = &mut connection.places;
        let Err(at) = places.binary_search_by_key(&number, |place| place.topic) else {
            return false;
        };
        let list = &mut self.topics[number as usize].connections;
        let index = list.len() as u32;
        if list.len() == list.capacity() {
            // Twice as much would often be too much, and there may be as many lists as users.
            list.reserve_exact(list.len().div_ceil(4).max(4));
        }
        list.push(key);
        let topic = number;
        places.reserve_exact(1);
        places.insert(at, RoutePlace { topic, index });
        true
    }

    /// Prepares the connection for this many topics. Each topic that is added beyond takes
    /// the work of moving all others.
    pub fn reserve(&mut self, key: RouteKey, topics: usize) {
        if let Some(connection) = &mut self.connections[key.0 as usize] {
            let more = topics.saturating_sub(connection.places.len());
            connection.places.reserve_exact(more);
        }
    }

    /// Stops passing rows of the topic to the connection.
    pub fn remove(&mut self, key: RouteKey, topic: &Topic) {
        let Some(&number) = self.numbers.get(topic) else {
            return;
        };
        let Some(connection) = &mut self.connections[key.0 as usize] else {
            return;
        };
        let places = &mut connection.places;
        if let Ok(at) = places.binary_search_by_key(&number, |place| place.topic) {
            let place = places.remove(at);
            self.vacate(place);
        }
    }

    /// Removes the connection with all its topics.
    pub fn disconnect(&mut self, key: RouteKey) {
        let connection = self.connections[key.0 as usize].take();
        for place in connection.into_iter().flat_map(|it| it.places) {
            self.vacate(place);
        }
        self.free_connections.push(key.0);
    }

    /// The connections that have the topic.
    pub fn of(&self, topic: &Topic) -> impl Iterator<Item = &M> {
        let number = self.numbers.get(topic);
        let list = number.map(|&number| &self.topics[number as usize].connections);
        list.into_iter()
            .flatten()
            .filter_map(|key| self.connections[key.0 as usize].as_ref())
            .map(|connection| &connection.mailbox)
    }

    /// Topics with at least one connection.
    pub fn topics(&self) -> usize {
        self.numbers.len()
    }

    fn number(&mut self, topic: &Topic) -> u32 {
        if let Some(&number) = self.numbers.get(topic) {
            return number;
        }
        let routed = RoutedTopic {
            name: topic.clone(),
            connections: Vec::new(),
        };
        let number = if let Some(number) = self.free_topics.pop() {
            self.topics[number as usize] = routed;
            number
        } else {
            self.topics.push(routed);
            self.topics.len() as u32 - 1
        };
        self.numbers.insert(topic.clone(), number);
        number
    }

    /// Takes a connection out of a topic's list. The last connection of the list moves to
    /// its place.
    fn vacate(&mut self, RoutePlace { topic, index }: RoutePlace) {
        let routed = &mut self.topics[topic as usize];
        routed.connections.swap_remove(index as usize);
        if let Some(moved) = routed.connections.get(index as usize)
            && let Some(connection) = &mut self.connections[moved.0 as usize]
            && let Ok(at) = connection
                .places
                .binary_search_by_key(&topic, |place| place.topic)
        {
            connection.places[at].index = index;
        }
        if routed.connections.is_empty() {
            routed.connections = Vec::new();
            self.numbers.remove(&routed.name);
            self.free_topics.push(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn topic(number: u8) -> Topic {
        Topic::parse(&number.to_string()).expect("a topic")
    }

    proptest! {
        #[test]
        fn a_topic_reaches_the_connections_that_have_it(
            steps in vec((0..6u8, 0..5u8, 0..4u8), 0..200)
        ) {
            let mut routes = TopicRoutes::default();
            let mut open: BTreeMap<u8, (RouteKey, BTreeSet<u8>)> = BTreeMap::new();
            for (step, who, what) in steps {
                let (key, topics) = open
                    .entry(who)
                    .or_insert_with(|| (routes.connect(who), BTreeSet::new()));
                match step {
                    0..3 => prop_assert_eq!(routes.add(*key, &topic(what)), topics.insert(what)),
                    3..5 => {
                        topics.remove(&what);
                        routes.remove(*key, &topic(what));
                    }
                    _ => {
                        routes.disconnect(*key);
                        open.remove(&who);
                    }
                }
                for what in 0..4 {
                    let mut reached: Vec<_> = routes.of(&topic(what)).copied().collect();
                    reached.sort_unstable();
                    let wanted = open.iter().filter(|(_, (_, topics))| topics.contains(&what));
                    let wanted: Vec<_> = wanted.map(|(&who, _)| who).collect();
                    prop_assert_eq!(reached, wanted);
                }
            }
            let used: BTreeSet<_> = open.values().flat_map(|(_, topics)| topics).collect();
            prop_assert_eq!(routes.topics(), used.len());
        }
    }
}
