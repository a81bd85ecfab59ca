// Package objects is what programs and the agent of a node share about objects
// (docs/tasks.md, section 4): the index in which the agent says where each is, the pins
// by which readers keep one where it is, and the arena in which a producer lays out its
// own segments.
//
// Nobody waits for anybody here. The agent is the only writer of the index; each pins
// file has one writer, its client. Readers never trust what they read: a damaged index
// or a hostile client gives an error or "not here", never a fault.
package objects
