package wire

// MsgName is a request about names of actors (docs/actors.md): NameRequest -> []ActorName.
const MsgName uint16 = 0x031f

// What a NameRequest asks.
const (
	NameTake = "take" // Names[0], if nobody has it; the answer is who has it then
	NameFind = "find" // Names[0]; the answer is empty when nobody has it
	NameList = "list" // all of a namespace, or with Namespace "" all
	NameDrop = "drop" // Names, as far as their actors have them
	NameMine = "mine" // Names are all that the node of Number has
)

// NameRequest is asked by agents.
type NameRequest struct {
	What      string
	Namespace string
	Names     []ActorName
	Number    uint32
}

// ActorName is the name of an actor.
type ActorName struct {
	Namespace, Name string
	Actor           ObjectID
	Meta            []byte // the SDK's
}
