//go:build linux

package launcher

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"launcher/shm"
	"launcher/shm/objects"
	"launcher/wire"
	"launcher/wire/sdk"
)

// fakeNode is an agent with one driver and one worker, both clients of this process. It
// keeps objects, hands tasks to the worker in the order in which they can run, and
// follows docs/tasks.md as far as the SDK can tell.
type fakeNode struct {
	t            testing.TB
	mu           sync.Mutex
	objects      map[objectID][]byte      // values that are there
	wanted       map[objectID][]*fakePeer // who asked for which
	tasks        []*fakeTask              // not handed out
	given        map[objectID]*fakeTask   // handed out, by task
	streams      map[objectID]uint32      // items yielded
	released     map[objectID]bool
	funcs        map[sdk.FuncID][]byte
	shapes       map[[2]uint32][]byte
	driver, work *fakePeer
	counts       map[uint16]int // frames by type, of both
	sequence     uint32
	index        *objects.Writer
	control      *shm.Segment
	mem          map[uint32]*shm.Segment
	segments     uint32
	hold         bool     // give no tasks out
	apart        bool     // arguments are to be asked for
	later        int      // so many values are only announced when they are asked for
	longest      int      // frame of a client
	asked        [][]byte // bodies of Calls
}

type fakeTask struct {
	id                    objectID
	fn                    sdk.FuncID
	shape, returns, flags uint32
	deps                  []objectID
	payload               []byte
	attempt               uint32
	sequence              uint32
}

type fakePeer struct {
	n      *fakeNode
	pins   *objects.Watch
	conn   *net.UnixConn
	number uint32
	away   bool // its new connection has not said Hello
}

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: t.TempDir() + "/s"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// startFake makes a node, its driver the process's client, its worker serving.
func startFake(t testing.TB) *fakeNode {
	t.Helper()
	n := &fakeNode{t: t, objects: map[objectID][]byte{}, wanted: map[objectID][]*fakePeer{}, given: map[objectID]*fakeTask{},
		streams: map[objectID]uint32{}, funcs: map[sdk.FuncID][]byte{}, shapes: map[[2]uint32][]byte{}, mem: map[uint32]*shm.Segment{}, counts: map[uint16]int{}, released: map[objectID]bool{}}
	n.work = &fakePeer{n: n, number: 2}
	n.driver = &fakePeer{n: n, number: 1}
	var err error
	if n.index, err = objects.CreateIndex("index", 1000); err == nil {
		n.control, err = shm.Create("control", 4096)
	}
	for _, p := range []*fakePeer{n.work, n.driver} {
		if err == nil {
			p.pins, err = objects.CreatePins("pins")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	worker := n.join(n.work, sdk.KindWorker)
	driver := n.join(n.driver, sdk.KindDriver)
	var serving sync.WaitGroup
	serving.Go(worker.worker.serve)
	if !theClient.CompareAndSwap(nil, driver) {
		t.Fatal("another test's client is there")
	}
	t.Cleanup(func() {
		theClient.Store(nil)
		driver.close()
		n.with(func() { // as when a driver has ended
			n.tasks = nil
			for id, t := range n.given {
				n.send(n.work, sdk.MsgCancelTask, binary.LittleEndian.AppendUint32(id[:], t.attempt))
			}
			n.send(n.work, sdk.MsgExit, nil)
		})
		serving.Wait()
		worker.close()
	})
	return n
}

// join makes a client of the node.
func (n *fakeNode) join(p *fakePeer, kind int) *client {
	n.t.Helper()
	conn, mine := pair(n.t)
	p.conn = mine
	var wg sync.WaitGroup
	wg.Go(func() { p.serve() })
	n.t.Cleanup(wg.Wait)
	n.t.Cleanup(func() { mine.Close() })
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	c, err := newClient(ctx, conn, greetingOf(kind), func(ctx context.Context) (*net.UnixConn, error) {
		conn, mine := pair(n.t)
		n.mu.Lock()
		p.conn, p.away = mine, true
		for id := range n.wanted { // it asks again
			n.wanted[id] = slices.DeleteFunc(n.wanted[id], func(x *fakePeer) bool { return x == p })
		}
		n.mu.Unlock()
		wg.Go(func() { p.serve() })
		return conn, nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *fakeNode) send(p *fakePeer, typ uint16, body []byte) {
	if !p.away {
		_ = wire.WriteFrame(p.conn, typ, body)
	}
}

// serve reads what the client says.
func (p *fakePeer) serve() {
	n := p.n
	n.mu.Lock()
	conn := p.conn
	n.mu.Unlock()
	head := make([]byte, 4)
	if _, err := readFull(conn, head); err != nil || string(head) != sdk.Greeting {
		return
	}
	for {
		typ, body, err := wire.ReadFrame(conn)
		if err != nil {
			return
		}
		n.mu.Lock()
		n.counts[typ]++
		n.longest = max(n.longest, len(body))
		n.handle(p, typ, body)
		if typ != sdk.MsgHandBack { // the Call after it comes first
			n.give()
		}
		n.mu.Unlock()
	}
}

func readFull(conn net.Conn, b []byte) (int, error) {
	for n := 0; n < len(b); {
		k, err := conn.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += k
	}
	return len(b), nil
}

func ids(b []byte) (out []objectID) {
	for ; len(b) >= 16; b = b[16:] {
		out = append(out, objectID(b))
	}
	return out
}

func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

func (n *fakeNode) handle(p *fakePeer, typ uint16, body []byte) {
	switch typ {
	case sdk.MsgHello:
		var h sdk.Hello
		if err := wire.Unmarshal(body, &h); err != nil || h.Version != sdk.Version || len(h.Nonce) != 16 {
			n.t.Errorf("hello %+v: %v", h, err)
		}
		b := wire.AppendFrame(nil, sdk.MsgWelcome, wire.Marshal(sdk.Welcome{Version: sdk.Version, Number: 1, Client: p.number, Node: "n1", Inline: sdk.InlineMax, Nonce: h.Nonce}))
		files := []*os.File{n.index.File(), p.pins.File()}
		if p == n.work {
			files = append(files, n.control.File())
		}
		if err := shm.SendFDs(p.conn, b, files...); err != nil {
			n.t.Error(err)
		}
		p.away = false
	case sdk.MsgSpace:
		n.segments++
		size := int64(binary.LittleEndian.Uint64(body))
		if size > 32<<20 {
			n.send(p, sdk.MsgGranted, append([]byte{3, 0, 0, 0}, encodeFailure(errNoRef, "full", "", "", "n1", 0)...))
			return
		}
		seg, err := shm.Create("segment", int(max(size, 4<<20)))
		if err != nil {
			n.t.Error(err)
			return
		}
		n.mem[n.segments] = seg
		b := binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, n.segments)
		b = binary.LittleEndian.AppendUint64(b, uint64(len(seg.Bytes())))
		_ = shm.SendFDs(p.conn, wire.AppendFrame(nil, sdk.MsgGranted, b), seg.File())
	case sdk.MsgOpenSegment:
		seg := n.mem[u32(body, 0)]
		b := binary.LittleEndian.AppendUint64(body[:4:4], uint64(len(seg.Bytes())))
		_ = shm.SendFDs(p.conn, wire.AppendFrame(nil, sdk.MsgSegment, b), seg.File())
	case sdk.MsgFunc:
		n.funcs[sdk.FuncID(body)] = body
		n.send(n.work, sdk.MsgGiveFunc, body)
	case sdk.MsgShape:
		n.shapes[[2]uint32{p.number, u32(body, 0)}] = body[4:]
	case sdk.MsgSubmit:
		t := &fakeTask{id: objectID(body), fn: sdk.FuncID(body[16:]), shape: u32(body, 32), returns: u32(body, 36), flags: u32(body, 40), attempt: 1}
		deps, held := int(u32(body, 44)), int(u32(body, 48))
		t.deps = ids(body[52 : 52+16*deps])
		t.payload = body[52+16*(deps+held):]
		if n.given[t.id] == nil {
			n.tasks = append(n.tasks, t)
		}
	case sdk.MsgPut:
		n.there(objectID(body), body[16:])
	case sdk.MsgGet:
		for _, id := range ids(body[8:]) {
			if v, ok := n.objects[id]; ok && n.later > 0 && v[0] == sdk.Inline {
				n.later--
				b, at := sdk.Begin(nil, sdk.MsgObject, sdk.ReadyOnly|sdk.Later)
				_, _ = p.conn.Write(sdk.Finish(append(append(b, id[:]...), v[:16]...), at))
			} else if ok {
				n.send(p, sdk.MsgObject, append(id[:], v...))
			} else {
				n.wanted[id] = append(n.wanted[id], p)
			}
		}
	case sdk.MsgRelease:
		for _, id := range ids(body) {
			n.released[id] = true
		}
	case sdk.MsgHold:
		for _, id := range ids(body) {
			delete(n.released, id)
		}
	case sdk.MsgResult:
		t := n.given[objectID(body)]
		values := body[44:]
		for i := range u32(body, 40) {
			size := 16 + 16*int(u32(values, 4)) + int(binary.LittleEndian.Uint64(values[8:]))
			if values[0] == sdk.Shared {
				size = 32 + 16*int(u32(values, 4))
			}
			if t.returns == sdk.Stream {
				n.there(t.id.With(n.streams[t.id]+1), values[:size])
			} else {
				n.there(t.id.With(uint32(i)+1), values[:size])
			}
			values = values[size:]
		}
		if t.returns == sdk.Stream && u32(body, 20) == sdk.ResultOK {
			n.there(t.id.With(n.streams[t.id]+1), []byte{sdk.End, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		}
		if u32(body, 20) != sdk.ResultOK && t.returns != sdk.Stream {
			v := body[44:]
			for i := range t.returns {
				n.there(t.id.With(uint32(i)+1), v)
			}
		}
	case sdk.MsgYield:
		id := objectID(body)
		n.streams[id] = u32(body, 20) + 1
		n.there(id.With(n.streams[id]), body[24:])
	case sdk.MsgCancel:
		for _, id := range ids(body[8:]) {
			if t := n.given[id]; t != nil {
				n.send(n.work, sdk.MsgCancelTask, binary.LittleEndian.AppendUint32(id[:], t.attempt))
			}
		}
	case sdk.MsgHandBack:
		for _, t := range n.given {
			if t.sequence >= u32(body, 0) && t.sequence != 0 {
				delete(n.given, t.id)
				n.tasks = append(n.tasks, t)
			}
		}
	case sdk.MsgCall:
		n.asked = append(n.asked, slices.Clone(body[4:]))
		n.send(p, sdk.MsgAnswer, append(body[:4:4], 0, 0, 0, 0, 0xc0))
	case sdk.MsgAwake:
	default:
		n.t.Errorf("frame %#04x", typ)
	}
}

// there makes an object and tells who wants it.
func (n *fakeNode) there(id objectID, v []byte) {
	if _, ok := n.objects[id]; ok {
		return
	}
	if v[0] == sdk.Shared {
		at := v[16+16*u32(v, 4):]
		if _, err := n.index.Insert(objects.Entry{ID: id, State: objects.Sealed, Segment: u32(at, 0), Offset: binary.LittleEndian.Uint64(at[8:]),
			Size: binary.LittleEndian.Uint64(v[8:]), Form: uint32(v[1])}); err != nil {
			n.t.Error(err)
		}
		v = v[:len(v)-len(at)] // the index says where
	}
	n.objects[id] = append([]byte(nil), v...)
	for _, p := range n.wanted[id] {
		n.send(p, sdk.MsgObject, append(id[:], v...))
	}
	delete(n.wanted, id)
}

// give hands out the tasks that can run.
func (n *fakeNode) give() {
	left := n.tasks[:0]
next:
	for _, t := range n.tasks {
		for _, d := range t.deps {
			if _, ok := n.objects[d]; !ok || n.hold {
				left = append(left, t)
				continue next
			}
		}
		if n.hold {
			left = append(left, t)
			continue
		}
		n.sequence++
		t.sequence = n.sequence
		n.given[t.id] = t
		about := n.shapes[[2]uint32{t.id.Client(), t.shape}]
		b := append(append([]byte(nil), t.id[:]...), t.fn[:]...)
		for _, v := range []uint32{t.attempt, t.sequence, t.returns, t.flags, uint32(len(t.deps)), uint32(len(about))} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(b, about...)
		for _, d := range t.deps {
			if b = append(b, d[:]...); n.apart {
				b = append(b, make([]byte, 16)...)
			} else {
				b = append(b, n.objects[d]...)
			}
		}
		n.send(n.work, sdk.MsgExec, append(b, t.payload...))
	}
	n.tasks = left
}

// with runs f while the node does nothing.
func (n *fakeNode) with(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.give()
}
