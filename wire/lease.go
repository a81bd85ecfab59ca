package wire

import "slices"

// Leases let an agent run tasks on another node. The asking agent tells the head what
// waits, in shapes and counts (Demand); the head finds nodes and proposes (LeaseOffer);
// the giving agent, who alone knows its room, grants some of it or nothing (LeaseGrant);
// the asking agent is told (Leased) and from then on talks to the giving agent directly.
// What it does not use for LeaseIdle it gives back (LeaseBack); the head takes back what
// others need more, or on drain (LeaseCut).
//
// A lease is soft: it ends with the session of either side with the head. What runs
// under it then runs on, but nothing new begins under it.
const (
	// agent -> head
	MsgDemand     uint16 = 0x010b
	MsgLeaseGrant uint16 = 0x010c
	MsgLeaseBack  uint16 = 0x010d
	// head -> agent
	MsgLeaseOffer uint16 = 0x020f
	MsgLeased     uint16 = 0x0210
	MsgLeaseCut   uint16 = 0x0211
	MsgInfeasible uint16 = 0x0212
	MsgHold       uint16 = 0x0213
)

const (
	// LeaseIdle is after how long (nanoseconds) an unused slot of a lease is given back.
	LeaseIdle = 1_000_000_000
	// DemandEvery is between two Demands at least.
	DemandEvery = 100_000_000
	// MaxDemand bounds the shapes of a Demand; the most urgent ones are told.
	MaxDemand = 256
	// HoldFor is how long a Hold stands that is not repeated.
	HoldFor = 10_000_000_000
)

// LeaseID names a lease; no other lease of the cluster ever has it.
type LeaseID uint64

// Shape is what tasks have in common for whoever places them.
type Shape struct {
	Resources Resources
	Strategy  Strategy
	Priority  int
	Job       JobID
	Time      int64  // how long such a task takes at most, nanoseconds; 0 = nobody knows
	Limits    Limits // of that job, all together
	Owner     string // the job's key: programs that no job started have one, too
}

// Strategy narrows where tasks may run.
type Strategy struct {
	Kind StrategyKind
	Node NodeID               // StrategyNode
	Soft bool                 // StrategyNode: elsewhere when that node is not there
	Hard map[string]LabelTest // StrategyLabels: all must hold
	Want map[string]LabelTest // StrategyLabels: nodes where these hold too come first

	Group  GroupID // StrategyGroup: in the room of this placement group
	Bundle int32   // of this bundle; -1 = of any
}

// StrategyKind is the kind of a Strategy.
type StrategyKind uint8

const (
	StrategyDefault StrategyKind = iota // here first, then where there is most room
	StrategySpread                      // evenly over all nodes
	StrategyNode
	StrategyLabels
	StrategyGroup // in room that a placement group has
)

// LabelTest is a condition on one label of a node.
type LabelTest struct {
	Op     string // in, !in, exists, !exists
	Values []string
}

// Holds reports whether a label fulfils the condition.
func (t LabelTest) Holds(value string, there bool) bool {
	switch t.Op {
	case "in":
		return there && slices.Contains(t.Values, value)
	case "!in":
		return !there || !slices.Contains(t.Values, value)
	case "exists":
		return there
	case "!exists":
		return !there
	}
	return false
}

// Matches reports whether labels fulfil all conditions.
func Matches(tests map[string]LabelTest, labels map[string]string) bool {
	for k, t := range tests {
		v, there := labels[k]
		if !t.Holds(v, there) {
			return false
		}
	}
	return true
}

// Demand is everything that waits on an agent for other nodes' room; it replaces the
// Demand before it.
type Demand struct {
	Seen   uint64 // Seq of the newest Leased that is counted in
	Shapes []Demanded
}

// Demanded are tasks of one shape that wait.
type Demanded struct {
	ID      uint32 // the agent's; it stands for the same Shape for the life of the node
	Shape   Shape
	Waiting uint32 // less the slots that are leased for them and free
	Since   int64  // when the oldest began to wait, by the agent's clock
	Near    uint32 // number of the node that has most of what it needs; 0 = any
}

// LeaseOffer asks an agent for room for another one's tasks.
type LeaseOffer struct {
	Lease  LeaseID
	For    NodeID
	Number uint32 // of the asking node's life
	Shape  Shape
	Slots  uint32
	Until  int64 // an answer after this comes too late, by the agent's clock
	Wait   bool  // for room, until then, as whoever else waits for it; one slot is granted
}

// LeaseGrant answers LeaseOffer: how many tasks at a time may run; 0 = none.
type LeaseGrant struct {
	Lease LeaseID
	Slots uint32
	Why   string
}

// Leased gives a lease to who asked for it.
type Leased struct {
	Seq    uint64 // counts them, per session
	Lease  LeaseID
	Shape  uint32 // Demanded.ID
	Node   NodeID
	Number uint32
	Addr   string
	Slots  uint32
}

// LeaseBack gives slots of a lease back, from either of its sides.
type LeaseBack struct {
	Lease LeaseID
	Slots uint32 // so many less
	Given bool   // by the side that gave it
}

// LeaseCut takes slots of a lease away. A lease with none left is over; who does not know
// it ignores this.
type LeaseCut struct {
	Lease LeaseID
	Slots uint32 // so many less
	Why   string
	Taken bool // of the side that took it only: the other has said so itself
}

// Infeasible: no node of the cluster, as it is or may grow, can ever run such tasks.
type Infeasible struct {
	Shape uint32
	Why   string
	Code  string // of the error; "" = unschedulable
	Held  bool   // not for ever: Why is what such tasks wait for now; "" = it is over
}

// Hold keeps room on a node for a gang or a placement group that is to start there: tasks are left it, but
// for those that are over by Start. It is repeated while it stands; Need of nothing
// ends it.
type Hold struct {
	Job   JobID
	Need  Resources
	Start int64   // by the agent's clock; 0 = not known
	Group GroupID // with Job 0: of this placement group, which may have it
}

// Messages by which an agent learns of others.
const (
	MsgPeerAsk uint16 = 0x010e // agent -> head
	MsgPeer    uint16 = 0x0214 // head -> agent
	MsgReach   uint16 = 0x011a // agent -> head
	MsgProbe   uint16 = 0x021a // head -> agent
	MsgRelay   uint16 = 0x0514 // agent -> head or agent: the first of a StreamRelay
)

// PeerAsk asks for the lives of nodes behind numbers (Welcome.Number). The head answers
// each with a Peer, and with another whenever something of it changes, until the
// session ends or the number is asked for with Drop.
type PeerAsk struct {
	Numbers []uint32
	Drop    bool
}

// MaxPeers bounds the numbers that an agent may follow.
const MaxPeers = 4096

// Peer is a life of a node.
type Peer struct {
	Number uint32
	Node   NodeID
	Addr   string       // host:port
	Gone   bool         // it is dead, or was silent for so long that nothing more is taken of it
	Cause  string       // with Gone
	Proof  bool         // with Gone: it is certain that all of it has ended
	Moved  []ActorMoved // with Gone: the actors that it owned, which live on
	Addrs  []string     // where it may be reached, too
	Far    bool         // the agent that asks has said that it cannot reach it
	Leaves bool         // it is to leave: what only it has is moved
	Via    []uint32     // with Far: nodes that may reach both, best first
}

// Reach says whether an agent reaches another one without help: told when it cannot, when
// it can again, and in answer to a Probe.
type Reach struct {
	Number uint32
	OK     bool
	Addr   string // with OK: the address that answered
	Why    string
}

// Probe asks an agent which of the lives of nodes it reaches without help.
type Probe struct{ Numbers []uint32 }

// Relay asks for a way to the life of a node: by the head over the session that it has
// with it, by an agent over a connection of its own. What follows is between both ends,
// mTLS and all.
type Relay struct{ Number uint32 }
