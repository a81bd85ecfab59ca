// Package host is the host's side of an ssh pool: the process that the broker starts over
// its connection (`launcher host`, on the binary that was copied there). It does with
// package local what the broker asks for, so that submissions, ends, marks and the killing
// of what is left over are those of local nodes.
//
// It speaks a session (package session) on its standard streams, each request a stream.
// Nothing on the host depends on it: when the connection breaks it ends, nodes run on, and
// the next one finds them by their files.
//
// What belongs to a cluster lies below ROOT/hosts/HOST/ID: homes may be shared between
// hosts, and clusters of one name may come from several machines. ID is of the cluster's
// certificate. Records of another host are never looked at.
package host

import (
	"time"

	"launcher/backends"
)

// Kinds of streams: requests of the broker are kindCall, answered once, and kindWatch,
// answered again and again. The host opens kindRoute for connections of its nodes that
// shall go the way of this session.
const (
	kindCall  uint16 = 0x4801
	kindWatch uint16 = 0x4802
	kindRoute uint16 = 0x4803
	kindHead  uint16 = 0x4804 // the broker's, about a cluster's head here: head.go
)

// Messages. An answer is msgAnswer or wire.MsgError.
const (
	msgSubmit    uint16 = 0x4810
	msgFind      uint16 = 0x4811
	msgStatus    uint16 = 0x4812
	msgCancel    uint16 = 0x4813
	msgForget    uint16 = 0x4814
	msgWatch     uint16 = 0x4815
	msgFacts     uint16 = 0x4816
	msgRoute     uint16 = 0x4817
	msgHeadStart uint16 = 0x4818 // headAsk -> headIs, and when it answers
	msgHeadJoin  uint16 = 0x4819 // headAsk -> whatever the two say
	msgHeadFetch uint16 = 0x481a // headAsk -> its record
	msgHeadDrop  uint16 = 0x481b // headAsk
	msgHeadSeen  uint16 = 0x481c // headAsk -> backends.HeadSeen
	msgHeadGhost uint16 = 0x481d // headAsk: a head of an older term ends and leaves nothing
	msgLend      uint16 = 0x481e // lend -> lent
	msgAnswer    uint16 = 0x4820
	msgChanged   uint16 = 0x4821
)

// submit asks for nodes; Home, Binary and what depends on the host are filled in there.
type submit struct {
	ID      string
	Request backends.Request
}

type find struct {
	ID, Cluster string
	Tokens      []string
}

// handles names allocations of a cluster by what the host's own backend calls them.
type handles struct {
	ID      string
	Handles [][]byte
}

// route is the first message of a kindRoute stream: what the node wants to reach.
type route struct{ Cluster, To string }

// Facts are what a host says of itself.
type Facts struct {
	Name    string // as the kernel has it
	Version string
	Root    string
	PID     int
	Clock   int64 // unix nanoseconds
}

// changed points at an allocation that should be asked about.
type changed struct{ Index int }

// logTail is how much of a failed node's log comes with its state.
const logTail = 2 << 10

// Status is the state of an allocation and, when it failed, the end of its log.
type Status struct {
	backends.Status
	Log string
}

// callBound bounds what the host does for one call, whatever the broker does.
const callBound = 5 * time.Minute

// maxHandles bounds a request's list.
const maxHandles = 4096
