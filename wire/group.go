package wire

// Placement groups: room on nodes that is taken together, all of it or none, and kept for
// the tasks and actors of the group (docs/groups.md). A group belongs to the agent of the
// node on which it was made (its owner), which tells the head of it (GroupTell) and hears
// what becomes of it (GroupNews). The head chooses the nodes and has each keep its
// bundles (BundleOrder), which answers (BundleNews). What a node keeps, it keeps until it
// is told otherwise: Hello lists it.
const (
	MsgGroupTell   uint16 = 0x010f // agent -> head
	MsgBundleNews  uint16 = 0x0110
	MsgGroupNews   uint16 = 0x0215 // head -> agent
	MsgBundleOrder uint16 = 0x0216
	MsgGroup       uint16 = 0x0320 // request: GroupRequest -> []GroupInfo
)

// GroupID names a placement group: an object id that its maker has used for nothing else.
type GroupID = ObjectID

// BundleID names a bundle; the zero value stands for what is in none.
type BundleID struct {
	Group GroupID
	Index uint32
}

// MaxBundles bounds the bundles of a group.
const MaxBundles = 10_000

// GroupStrategy says how the bundles of a group lie on nodes.
type GroupStrategy uint8

const (
	GroupPack         GroupStrategy = iota // on as few as possible
	GroupSpread                            // on as many as possible
	GroupStrictPack                        // on one
	GroupStrictSpread                      // no two on one
)

// GroupSpec is what is asked for.
type GroupSpec struct {
	ID       GroupID
	Name     string
	Strategy GroupStrategy
	Bundles  []Resources
	Labels   []map[string]LabelTest // per bundle; shorter or nil = none
	Detached bool                   // it outlives its job
	Job      string
	Owner    uint32 // number of the life of the owner's node
	Limits   Limits // of the job
}

// Whole is what all of its bundles need.
func (s *GroupSpec) Whole() (r Resources) {
	for _, b := range s.Bundles {
		r = r.Add(b, 1)
	}
	return r
}

// GroupState is how far a group is.
type GroupState uint8

const (
	GroupPending  GroupState = iota
	GroupCreated             // all its bundles are kept
	GroupMoving              // some were lost with their node, and wait for room
	GroupRemoved             // Why says by whom
	GroupConflict            // another group has the name
)

func (s GroupState) String() string {
	return [...]string{"PENDING", "CREATED", "RESCHEDULING", "REMOVED", "CONFLICT"}[min(s, GroupConflict)]
}

// GroupTell tells the head of groups that their owner has made, or that it made before the
// head was there, and of those that are over. Nodes says where the bundles of a spec are
// already, "" = nowhere yet; nil = nowhere.
type GroupTell struct {
	Made []GroupTold
	Over []GroupID
}

// GroupTold is one group of GroupTell.
type GroupTold struct {
	Spec  GroupSpec
	Nodes []NodeID
}

// GroupNews tells the owner what became of its group.
type GroupNews struct {
	ID    GroupID
	State GroupState
	Nodes []NodeID // per bundle; "" = nowhere
	Why   string
}

// BundleWhat is what a BundleOrder wants.
type BundleWhat uint8

const (
	BundleReserve BundleWhat = iota // all of them, or none; without Commit until Until
	BundleCommit
	BundleDrop
)

// BundleOrder is about bundles of one group on one node.
type BundleOrder struct {
	What    BundleWhat
	Group   GroupID
	Round   uint64 // returned in the answer to BundleReserve
	Commit  bool   // BundleReserve: nothing else is waited for
	Until   int64  // BundleReserve: by the agent's clock
	Bundles []Bundle
	Why     string // BundleDrop
}

// Bundle is one bundle of a group.
type Bundle struct {
	Index uint32
	Need  Resources
}

// BundleNews answers BundleReserve.
type BundleNews struct {
	Group GroupID
	Round uint64
	OK    bool
	Why   string
}

// What a GroupRequest asks.
const (
	GroupList   = "list"
	GroupFind   = "find"   // by Name
	GroupLook   = "look"   // by ID
	GroupRemove = "remove" // by ID
)

// GroupRequest is asked by agents and commands.
type GroupRequest struct {
	What string
	ID   GroupID
	Name string
}

// GroupInfo is what there is to know of a group.
type GroupInfo struct {
	Spec  GroupSpec
	State GroupState
	Nodes []NodeID
	Why   string // it is not there yet
}
