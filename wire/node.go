package wire

import "strconv"

// NodeConfig is what a backend gives a node's first process (`launcher node`) on its
// standard input, msgpack: everything the node needs to join, secrets included. It is
// never written to disk; the supervisor keeps it in memory for the agents it starts.
type NodeConfig struct {
	Cluster      string
	Node         NodeID
	Epoch        Epoch
	Pool         string
	Token        string   // the submission's
	Addrs        []string // of the head, best first
	CA           []byte   // PEM
	JoinKey      []byte   // one use; void after joining
	Dir          string   // the node's directory: agent.sock, spool/, agent.log
	CacheDir     string   // shared by the user's nodes on this machine: cache/
	CPUs         []int    // cores this agent may use; nil = all that affinity and cgroups allow
	Memory       int64    // bytes this agent may hand out; 0 = what detection finds
	Resources    *Resources
	Labels       map[string]string
	Share        string
	Grace        int64
	ObjectMemory string // [objects] memory, for example "30%"
	Spill        string
	Deadline     int64
	Ports        string // "20000-20100" or ""
	Interface    string
	CertLife     int64    // lifetime of certificates, nanoseconds; 0 = 24 h
	Slot, Slots  int      // this node is number Slot of Slots that divide this machine (GPUs too); 0, 0 = it is alone
	Setup        []string // of the pool, as in Job: checked when the node starts
	Env          []string
	Python       string
	Notice       int64 // after SIGTERM work is told to leave and has so long before it is stopped; 0 = it is stopped at once
	Container    string
	Route        string // what the way by RouteSocket is called; "" = ssh
	GPUs         []int  // that a batch system granted, by their numbers there: offered where the driver shows none
	Note         string // what is odd about this node, for people; "" = nothing
}

// HeadConfig is clusters/NAME/head.config (msgpack, 0600), written by `up` and by Update.
type HeadConfig struct {
	Name         string
	Dir          string // the cluster's state directory
	Home         string
	Binary       string
	SpecPath     string
	SpecText     string
	Pools        []Pool
	Grace        int64
	Ports        string
	Interface    string
	ObjectMemory string
	Spill        string
	CertLife     int64
	Gone         []Pool   // removed by an Update; nodes of them may still have to be given back
	At           string   // the pool on one of whose machines the head is to run; "" = here
	Away         bool     // the broker is on another machine
	Term         uint64   // how often the head was started elsewhere because its machine was lost
	Seat         NodeID   // with Away: the node that the head is on, or whose machine it is on
	Silent       []NodeID // nodes that were not heard of for so long that they count as lost when the head starts
	State        string   // where journal and record are; "" = Dir
	Roam         string   // the pool into whose allocations the head goes; "" = none
	Front        []string // with Roam: addresses at home, by which nodes find the head wherever it is
	Why          string   // with Roam: why it is where it is
}

// Stream kinds of a session: the first two bytes of every stream.
const (
	StreamControl  uint16 = 1  // agent <-> head: the messages of agent.go; one per session
	StreamRequest  uint16 = 2  // command or SDK -> head (or agent, which relays): client.go
	StreamLogs     uint16 = 3  // agent -> head: LogBatch, answered by LogAck
	StreamRing     uint16 = 4  // agent -> agent: RingOpen, then a collective's traffic
	StreamObjects  uint16 = 5  // agent -> agent: Pull, answered by Piece and bytes: transfer.go
	StreamTasks    uint16 = 6  // agent -> agent: tasks under leases, what becomes of them and of their references
	StreamPrograms uint16 = 7  // agent -> agent: Program, answered by ProgramIs and bytes: transfer.go
	StreamBroker   uint16 = 8  // a broker elsewhere -> head: that it is there; head -> broker: a call each (broker/remote.go)
	StreamFollow   uint16 = 9  // head -> agent: its journal, for a copy there (wire/follow)
	StreamRelay    uint16 = 10 // agent -> head or agent: Relay, answered by MsgOK, then a connection to another agent
	StreamRelayed  uint16 = 11 // head -> agent: a connection of another agent
	StreamProcess  uint16 = 12 // head -> agent: a process with its standard streams (process.go)
	StreamHead     uint16 = 13 // head -> agent or broker: it is to have the head (seat.go)
)

// Messages of the log stream, of rings.
const (
	MsgLogBatch uint16 = 0x0501
	MsgLogAck   uint16 = 0x0502
	MsgRingOpen uint16 = 0x0503
)

// LogBatch is a stretch of a node's spool of one job: whole log frames, zstd-compressed.
// From and To are offsets in the spool; the head refuses a gap and ignores what it has.
type LogBatch struct {
	Job      JobID
	Node     NodeID
	Epoch    Epoch
	From, To int64
	Zstd     []byte
	Base     int64 // equal to From: what was before it is gone at the node, so a gap up to it is a loss that the record notes
}

// LogAck: the record has the spool of Job up to To.
type LogAck struct {
	Job JobID
	To  int64
}

// RingOpen opens the stream that a node sends its part of a gang's collectives on, to
// the next node of the ring. It is answered by MsgOK, or by MsgError of kind unavailable
// when that node does not know of the group yet.
type RingOpen struct {
	Gang Try
	From NodeID
	Lane uint32 // 0 .. lanes-1, when several connections carry one ring
}

// ClusterFile is clusters/NAME/cluster.json, written whole by the head whenever it
// starts or moves: what a command or a link needs to find the cluster. Paths are of the
// machine it lies on.
type ClusterFile struct {
	Version     int      `json:"version"` // of this file: 1
	Name        string   `json:"name"`
	SpecPath    string   `json:"spec"`
	Addrs       []string `json:"addrs"` // of the head, host:port, best first
	Fingerprint string   `json:"ca"`    // secure.Fingerprint of ca.crt
	Build       string   `json:"build"`
	Host        string   `json:"host"` // where the head runs, os.Hostname there
	PID         int      `json:"pid"`
	Epoch       Epoch    `json:"epoch"`
	Started     int64    `json:"started"` // of the head, unix nanoseconds
}

// RouteSocket is the socket in a node's directory on which its agent asks for a way to
// others, where its backend has one: a line with the name of whom it wants (RouteHead),
// then the connection.
const (
	RouteSocket = "route.sock"
	RouteHead   = "head"
)

// TermShift is where, in the epoch of a head, the count begins of how often it was moved
// without what it had: below are its restarts. One that was replaced and does not know it
// never reaches the epochs of the one in its place.
const TermShift = 16

// PlaceNode names the node of the i-th machine of a pool that lists machines.
func PlaceNode(pool string, i int) NodeID { return NodeID(pool + "-" + strconv.Itoa(i)) }
