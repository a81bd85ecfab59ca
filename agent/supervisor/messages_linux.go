package supervisor

import (
	"launcher/agent/proc"
	"launcher/wire"
)

// A message on the socket between supervisor and agent is one packet (SEQPACKET):
//
//	type u16 · flags u16 · seq u32 · body (msgpack)
//
// little-endian, with descriptors as control data. A body over maxInline travels in a
// memory file, the packet's last descriptor (flagInFile). Both ends are always the same
// binary, so there are no versions.
const (
	packetHeader = 8
	maxInline    = 64 << 10
	maxBody      = 256 << 20
	flagInFile   = 1
)

// Messages to the supervisor; those with a seq are answered by msgReply.
const (
	msgSpawn    uint16 = 1 + iota // spawnOrder
	msgSignal                     // signalOrder
	msgAck                        // []wire.Proc, no answer
	msgStore                      // []string, a descriptor each
	msgDrop                       // []string, no answer
	msgFarewell                   // string
	msgRelease                    // []wire.Proc, no answer
	msgSweep                      // nothing
)

// Messages to the agent.
const (
	msgHandover uint16 = 101 + iota // handover
	msgFDs                          // []string, a descriptor each
	msgHanded                       // end of the handover
	msgReply                        // reply
	msgExits                        // []Exit
)

// handover is what a new agent gets first.
type handover struct {
	Config   []byte // wire.NodeConfig as the guard read it
	Restarts uint32
	Mark     string
	Procs    []ProcInfo
}

// ProcInfo is one line of the supervisor's process table.
type ProcInfo struct {
	Proc    wire.Proc
	PID     int
	Started int64 // unix nanoseconds
	Exit    *Exit // nil while it runs; kept until acknowledged
}

// Exit is the end of a process. One without a Proc is of an orphan that came to the
// supervisor.
type Exit struct {
	Proc     wire.Proc
	PID      int
	Code     int32 // exit code, or 128+Signal
	Signal   int32 // 0 when it ended by itself
	Started  int64 // unix nanoseconds
	Ended    int64
	RSS      int64 // peak resident bytes, of itself or one of its children; not less than the supervisor's own
	User     int64 // CPU time with its children's, nanoseconds
	System   int64
	Leftover bool // processes of its group live on: Signal with group = true, or Sweep, ends them
}

type spawnOrder struct {
	Proc   wire.Proc
	Argv   []string
	Env    []string
	Dir    string
	CPUs   []int
	Limits []proc.Limit
	Files  []bool   // for 0, 1, 2, ...: true = the next descriptor, false = /dev/null
	Keep   []string // names for the descriptors after those
}

type signalOrder struct {
	Proc  wire.Proc
	Sig   int
	Group bool
}

// reply answers an order. Step and Errno are those of a proc.StartError.
type reply struct {
	PID     int
	Started int64
	Known   bool
	Step    string
	Errno   int
	Path    string
	Err     string // anything else
	Count   int    // of msgSweep
	Ending  bool   // everything is being killed: what fails now says nothing
}
