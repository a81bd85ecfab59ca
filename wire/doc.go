// Package wire holds what crosses a process boundary: identifiers, resources,
// frames and messages. It has no I/O of its own beyond reading and writing a frame.
//
// Every message is a struct encoded by msgpack as an array (Marshal), so fields are
// append-only: never reorder, remove or change the meaning of one. docs/protocol.md
// is the normative text and has test vectors; vectors_test.go holds them.
//
// Sub-packages: secure (the cluster's CA, certificates, joining) and session
// (authenticated, multiplexed connections).
package wire

// Protocol is the version of everything in this package. Two sides whose major
// versions differ refuse each other with a sentence that names both; a higher minor
// only adds fields and message types.
const (
	ProtocolMajor = 1
	ProtocolMinor = 0
)
