package wire

// A head that goes into the allocations of a pool (HeadConfig.Roam) and on from one to the
// next, always with the same state directory. On a stream of kind StreamHead the head asks
// the next place, a node's agent or the broker, to take it:
//
//	head                          the place
//	MsgHeadTake{Config}      ->
//	                         <-   MsgHeadReady{Addrs}: it listens; whoever comes waits
//	(the broker's machine tries to connect there)
//	(everybody is told; the journal is closed)
//	MsgHeadGo                ->
//	                         <-   MsgOK
//
// A stream that ends before MsgHeadGo undoes it. On such a stream to the broker MsgHeadTry
// asks whether its machine connects to a place (answered by MsgHeadTried), and MsgHeadMoves tells it, as on the
// control stream an agent, where the head will be in a moment.
const (
	MsgHeadTake  uint16 = 0x0801
	MsgHeadReady uint16 = 0x0802
	MsgHeadGo    uint16 = 0x0803
	MsgHeadTry   uint16 = 0x0804 // head -> broker: HeadReady
	MsgHeadTried uint16 = 0x0805
	MsgHeadMoves uint16 = 0x021b // head -> agent, broker
)

// HeadTake is what the head is to be started with there.
type HeadTake struct{ Config HeadConfig }

// HeadReady says where it will be reached, best first.
type HeadReady struct{ Addrs []string }

// HeadTried says why a place is not reached; "" = it is.
type HeadTried struct{ Why string }

// HeadMoves tells where the head goes.
type HeadMoves struct{ Seat HeadSeat }

// HeadSeat is where a head is that may go into allocations; HeadSeatFile in the state
// directory has it.
type HeadSeat struct {
	Node  NodeID // "" = at home
	Addrs []string
	Front []string // addresses at home, where whoever connects is passed on
}

// HeadSeatFile is its name.
const HeadSeatFile = "head.seat"

// Names by which a head's supervisor keeps its listeners.
const (
	KeptTCP   = "head-tcp-" // followed by the host
	KeptUnix  = "head-unix"
	KeptGiven = "head-given" // by whoever started the supervisor, for any host
)
