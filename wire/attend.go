package wire

// MsgAttend is a request of a command at a terminal: as long as its stream is open, what
// the broker has to ask of a person is asked there. Attend -> Prompt ...; the first Prompt
// has no number and says that the sitting has begun. Each other is answered with MsgAnswer.
const (
	MsgAttend uint16 = 0x0321
	MsgAnswer uint16 = 0x0322 // Answer, command -> broker
)

// Attend begins a sitting.
type Attend struct {
	Terminal  bool // prompts can be answered
	AcceptNew bool // keys of hosts never seen are taken
}

// Prompt is one question, or the end of one.
type Prompt struct {
	Number uint64
	Text   string
	Secret bool // what is typed is not shown
	Over   bool // nobody waits for the answer any more
}

// Answer answers a Prompt.
type Answer struct {
	Number uint64
	Text   string
	OK     bool // false: it was not answered
}
