package launcher

import (
	"encoding/binary"

	"launcher/wire"
)

type (
	objectID = wire.ObjectID
	taskID   = wire.ObjectID
)

const (
	greeting      = "LSDK"
	version       = 1
	returnsStream = 0xFFFFFFFF

	kindDriver = 1
	kindWorker = 2

	kindInline uint8 = 1
	kindShared uint8 = 2
	kindError  uint8 = 3
	kindEnd    uint8 = 4

	submitLarge uint32 = 1
	submitNamed uint32 = 2

	getReady  uint32 = 0
	getValue  uint32 = 1
	getBlocks uint32 = 2

	cancelForce     uint32 = 1
	cancelRecursive uint32 = 2

	objectReadyOnly uint16 = 1

	resultOK        uint32 = 0
	resultFailed    uint32 = 1
	resultRetry     uint32 = 2
	resultCancelled uint32 = 3
)

// Types of frames.
const (
	msgHello       = 0x0410
	msgFunc        = 0x0411
	msgShape       = 0x0412
	msgSubmit      = 0x0413
	msgPut         = 0x0414
	msgGet         = 0x0415
	msgAwake       = 0x0416
	msgRelease     = 0x0417
	msgHold        = 0x0418
	msgResult      = 0x0419
	msgYield       = 0x041a
	msgSpace       = 0x041b
	msgOpenSegment = 0x041c
	msgCancel      = 0x041d
	msgHandBack    = 0x041e
	msgCall        = 0x041f
	msgDropped     = 0x0420

	msgWelcome     = 0x0440
	msgObject      = 0x0441
	msgExec        = 0x0442
	msgGranted     = 0x0444
	msgSegment     = 0x0445
	msgAnswer      = 0x0446
	msgLog         = 0x0447
	msgCancelTask  = 0x0448
	msgDropSegment = 0x0449
	msgConsumed    = 0x044a
	msgExit        = 0x044b
	msgGiveFunc    = 0x0443
)

// hello is what the client says first.
type hello struct {
	Version  int
	Kind     int
	Language string
	PID      int
	Proc     string
	Job      string
	Name     string
	Client   uint32
	Nonce    []byte
	Token    string
	Program  string
	Dir      string
	Path     []string
}

// welcome is what the agent answers.
type welcome struct {
	Version int
	Number  uint32
	Client  uint32
	Node    string
	Cluster string
	Job     string
	Inline  int
	Nonce   []byte
	CPUs    int64
}

// parseExec reads an Exec frame; it keeps b.
func parseExec(c *client, b []byte) (*order, error) {
	const head = 16 + 16 + 6*4
	if len(b) < head {
		return nil, short("Exec")
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	t := &order{task: taskID(b), fn: functionID(b[16:]), attempt: u32(32), sequence: u32(36), returns: u32(40), flags: u32(44), more: make(chan struct{}, 1)}
	deps, about := int(u32(48)), int(u32(52))
	b = b[head:]
	if about > len(b) || deps > len(b)/32 {
		return nil, short("Exec")
	}
	t.about, b = b[:about], b[about:]
	t.in = arguments{c: c, large: t.flags&submitLarge != 0, deps: make([]dep, deps)}
	for i := range t.in.deps {
		d := &t.in.deps[i]
		if len(b) < 16 {
			return nil, short("Exec")
		}
		d.id = objectID(b)
		kind, form, size, rest, ok := cutValueHead(b[16:])
		if !ok || kind != kindShared && size > uint64(len(rest)) {
			return nil, short("Exec")
		}
		d.kind, d.form, b = kind, form, rest
		if kind != kindShared {
			d.data, b = rest[:size:size], rest[size:]
		}
	}
	t.in.payload = b
	return t, nil
}
