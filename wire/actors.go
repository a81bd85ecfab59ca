package wire

// Detached actors outlive the node that owns them. Its agent leaves the head a will: all that
// another agent needs to own the actor after it. The head has it in its journal, and when the
// node is proved dead gives it to the agent where the actor lives, or else to any (ActorTake).
const (
	MsgActorTell uint16 = 0x0119 // agent -> head
	MsgActorTake uint16 = 0x0219 // head -> agent
)

// ActorWill is of one detached actor.
type ActorWill struct {
	Actor ObjectID
	Job   string
	Host  uint32 // number of the node where it lives; 0 = nowhere at the moment
	Name  ActorName
	Body  []byte // the agents'
}

// ActorTell tells the head of wills that are new, and of actors that are dead. With All, Made
// name all that the agent owns; a will without a body was told before.
type ActorTell struct {
	All  bool
	Made []ActorWill
	Over []ObjectID
}

// ActorTake makes an agent the owner of an actor. It is repeated until the agent tells the
// will as its own.
type ActorTake struct {
	Actor ObjectID
	Body  []byte
}

// ActorMoved says who owns an actor whose first owner is gone.
type ActorMoved struct {
	Actor  ObjectID
	Number uint32 // 0 = nobody yet
}
