package wire

// A process on a node with its standard streams, beside the node's work: for a terminal
// there, and for copies of files. A request to the head, which passes it and all that
// follows to the node's agent on a stream of kind StreamProcess:
//
//	Process -> struct{} when it runs, then Output ..., and Exit as the last
//	           meanwhile Input ... and Window to it
const (
	MsgProcess uint16 = 0x0341
	MsgInput   uint16 = 0x0342 // Input, to the process
	MsgWindow  uint16 = 0x0343 // Window, to the process
	MsgOutput  uint16 = 0x0344 // Output, of the process
	MsgExit    uint16 = 0x0345 // Exit
)

// Process is what is to run. It ends with the stream, and with the agent.
type Process struct {
	Node    NodeID
	Command []string // none: the user's login shell
	Own     bool     // Command are arguments of the node's launcher
	TTY     bool     // at a terminal of its own
	Term    string   // the terminal's kind ($TERM)
	Window  Window
}

// Window is the size of a terminal.
type Window struct{ Rows, Cols uint16 }

// Input is for the standard input; without Data it is at its end.
type Input struct{ Data []byte }

// Output is of the standard output or the standard error.
type Output struct {
	Err  bool
	Data []byte
}

// Exit is how the process ended: its exit code, or 128 and the signal.
type Exit struct{ Code int32 }
