package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// peerStream is a stream of kind wire.StreamTasks.
type peerStream interface {
	net.Conn
	CloseWrite() error
}

const (
	// peerBuffer is how much is read at a time.
	peerBuffer = 256 << 10
	// maxUnsentPeer bounds what waits for another agent that does not read.
	maxUnsentPeer = 1 << 30
)

// awaited is a point of a borrow: what was told before it is known to the owner.
type awaited struct {
	b *borrow
	n uint64
}

// peerWriter writes frames to another agent, in order, each batch once what it waits for
// has come.
type peerWriter struct {
	s    *sdkServer
	st   peerStream
	done chan struct{}
	more chan struct{}

	mu    sync.Mutex
	queue []batch // guarded by mu
	size  int     // guarded by mu
	logs  logGate // lines of output that were not sent; guarded by mu
	last  bool    // the stream is to end after the queue; guarded by mu
	shut  bool    // guarded by mu
}

type batch struct {
	frames []byte
	after  []awaited
}

func newPeerWriter(s *sdkServer, st peerStream) *peerWriter {
	w := &peerWriter{s: s, st: st, done: make(chan struct{}), more: make(chan struct{}, 1)}
	s.wg.Go(w.run)
	return w
}

func (w *peerWriter) put(frames []byte, after []awaited) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut || w.last {
		return
	}
	if w.size += len(frames); w.size > maxUnsentPeer {
		w.shut = true
		_ = w.st.Close()
		return
	}
	if n := len(w.queue); n > 0 && len(after) == 0 && len(w.queue[n-1].after) == 0 {
		w.queue[n-1].frames = append(w.queue[n-1].frames, frames...)
	} else {
		w.queue = append(w.queue, batch{frames, after})
	}
	w.poke()
}

// putLog adds a frame of output unless too much waits already; the next that is sent says
// how many lines were left out.
func (w *peerWriter) putLog(lines int, frame func(dropped int) []byte) {
	w.mu.Lock()
	dropped, fits := w.logs.pass(w.size, lines)
	w.mu.Unlock()
	if fits {
		w.put(frame(dropped), nil)
	}
}

func (w *peerWriter) poke() {
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// finish ends the stream after what is queued.
func (w *peerWriter) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = true
	w.poke()
}

// close ends it at once.
func (w *peerWriter) close() {
	w.mu.Lock()
	was := w.shut
	w.shut = true
	w.mu.Unlock()
	if !was {
		close(w.done)
	}
	_ = w.st.Close()
}

func (w *peerWriter) run() {
	for {
		select {
		case <-w.more:
		case <-w.done:
			return
		}
		for {
			w.mu.Lock()
			if len(w.queue) == 0 || w.shut {
				last := w.last
				w.mu.Unlock()
				if last {
					_ = w.st.CloseWrite()
				}
				break
			}
			b := w.queue[0]
			w.queue = w.queue[1:]
			w.size -= len(b.frames)
			w.mu.Unlock()
			for _, a := range b.after {
				if !a.b.wait(a.n, w.done) {
					return
				}
			}
			_ = w.st.SetWriteDeadline(time.Now().Add(writeBound))
			if _, err := w.st.Write(b.frames); err != nil {
				_ = w.st.Close() // the reader sees it
				return
			}
		}
	}
}

// read gives take the frames that come, as many under one turn as are there, until the
// stream ends: nil when the other side ended it well.
func (w *peerWriter) read(take func(now int64, typ uint16, body []byte) error) error {
	r := bufio.NewReaderSize(w.st, peerBuffer)
	for {
		typ, body, err := wire.ReadFrame(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if typ == wire.MsgError {
			var e errs.Wire
			if err := wire.Unmarshal(body, &e); err != nil {
				return err
			}
			return e.FromWire()
		}
		w.s.turn(func(now int64) {
			for n := 0; err == nil; n++ {
				if err = take(now, typ, body); err != nil || n == maxBurst || !wholeFrame(r) {
					return
				}
				typ, body, err = wire.ReadFrame(r)
			}
		})
		if err != nil {
			return err
		}
	}
}

// wholeFrame reports whether a frame can be read without waiting.
func wholeFrame(r *bufio.Reader) bool {
	if r.Buffered() < wire.FrameHeader {
		return false
	}
	h, _ := r.Peek(4)
	return int64(r.Buffered()) >= int64(binary.LittleEndian.Uint32(h))+4
}

func readPeerHello(st peerStream) (h sdk.PeerHello, err error) {
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := wire.ReadFrame(st)
	_ = st.SetReadDeadline(time.Time{})
	if err == nil && typ != sdk.MsgPeerHello {
		err = errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, sdk.MsgPeerHello)
	}
	if err != nil {
		return h, err
	}
	return h, wire.Unmarshal(body, &h)
}

func splitPath(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\x00")
}

// borrow is this node's part in objects that one other node owns: what it refers to, and
// what values it waits for.
type borrow struct {
	s      *sdkServer
	number uint32
	cancel context.CancelFunc

	held   map[wire.ObjectID]bool   // guarded by a.mu, as is all below
	wanted map[wire.ObjectID]int    // values that are being fetched, and how often it failed
	copies map[wire.ObjectID][]byte // what the other node is to keep copies of: bodies of PeerCopy
	w      *peerWriter              // nil: not connected
	fresh  bool                     // references were added that no sync follows yet
	synced uint64                   // of the newest sync that was asked for
	acked  uint64                   // of the newest that was answered
	change chan struct{}            // closed and replaced when acked grows
	over   bool
}

// borrowOf gives the borrow of a node, begun if need be. a.mu is held.
func (s *sdkServer) borrowOf(number uint32) *borrow {
	b := s.peers.borrows[number]
	if b == nil {
		b = &borrow{s: s, number: number, held: map[wire.ObjectID]bool{}, wanted: map[wire.ObjectID]int{}, copies: map[wire.ObjectID][]byte{}, change: make(chan struct{})}
		var ctx context.Context
		ctx, b.cancel = context.WithCancel(s.ctx)
		s.peers.borrows[number] = b
		s.wg.Go(func() { b.run(ctx) })
	}
	return b
}

func (b *borrow) frame(typ uint16, body []byte) {
	if b.w != nil {
		b.w.put(wire.AppendFrame(nil, typ, body), nil)
	}
}

// hold tells the owner of a reference. a.mu is held.
func (b *borrow) hold(id wire.ObjectID) {
	if !b.held[id] {
		b.held[id] = true
		b.frame(sdk.MsgHold, id[:])
		if !b.fresh {
			b.fresh = true
			b.s.peers.fresh = append(b.s.peers.fresh, b)
		}
	}
}

// letGo ends one; only after what this node has begun to hold meanwhile is known
// elsewhere. a.mu is held.
func (b *borrow) letGo(id wire.ObjectID) {
	delete(b.wanted, id)
	if b.held[id] {
		delete(b.held, id)
		if b.w != nil {
			b.s.syncBorrows()
			b.w.put(wire.AppendFrame(nil, sdk.MsgRelease, id[:]), b.s.untold())
		}
	}
}

// get asks for a value. a.mu is held.
func (b *borrow) get(id wire.ObjectID) {
	if _, ok := b.wanted[id]; !ok {
		b.wanted[id] = 0
		b.ask(id)
	}
}

func (b *borrow) ask(id wire.ObjectID) {
	b.frame(sdk.MsgGet, append(binary.LittleEndian.AppendUint64(nil, uint64(sdk.GetValue)), id[:]...))
}

// syncBorrows asks the owners of new references to say when they know. a.mu is held.
func (s *sdkServer) syncBorrows() {
	for _, b := range s.peers.fresh {
		if b.fresh = false; b.over {
			continue
		}
		b.synced++
		b.frame(sdk.MsgPeerSync, binary.LittleEndian.AppendUint64(nil, b.synced))
	}
	s.peers.fresh = s.peers.fresh[:0]
}

// end gives the borrow up: its owner is gone. a.mu is held.
func (b *borrow) end() {
	b.over = true
	b.cancel()
	b.ack(b.synced)
}

func (b *borrow) ack(n uint64) {
	if n > b.acked {
		b.acked = n
		close(b.change)
		b.change = make(chan struct{})
	}
}

// wait waits until the owner knows of everything up to a sync; false = until done.
func (b *borrow) wait(n uint64, done <-chan struct{}) bool {
	for {
		b.s.a.mu.Lock()
		acked, over, change := b.acked, b.over, b.change
		b.s.a.mu.Unlock()
		if acked >= n || over {
			return true
		}
		select {
		case <-change:
		case <-done:
			return false
		}
	}
}

// run keeps a connection to the owner.
func (b *borrow) run(ctx context.Context) {
	s := b.s
	since, pause := time.Now(), reopenPause
	for ctx.Err() == nil {
		opened, err := b.connect(ctx)
		if opened {
			since, pause = time.Now(), reopenPause
		}
		if ctx.Err() != nil {
			return
		}
		if errs.Is(err, errs.Lost) || errs.Is(err, errs.Fenced) || time.Since(since) > reopenFor {
			over := errs.Is(err, errs.Lost) || errs.Is(err, errs.Fenced)
			s.turn(func(now int64) {
				b.giveUp(now, err)
				if over && s.peers.borrows[b.number] == b {
					delete(s.peers.borrows, b.number)
					b.end()
				}
			})
			if over {
				return
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, time.Second)
	}
}

// giveUp answers who waits for values: their owner cannot be reached. a.mu is held.
func (b *borrow) giveUp(now int64, err error) {
	code := "lost"
	if errs.Is(err, errs.Lost) {
		code = "owner_died"
	}
	for id := range b.wanted {
		delete(b.wanted, id)
		if b.s.core.OwnerOf(id) != b.number || code == "owner_died" && b.s.core.Inherit(now, id) || code == "lost" && b.s.core.Unreached(now, id, err.Error()) {
			continue
		}
		b.fetched(now, id, failure(b.s, code, "object "+id.String()+" cannot be had from its owner: "+err.Error()))
	}
	b.ack(b.synced) // nothing more can be told to it
}

func failure(s *sdkServer, code, msg string) sdk.Value {
	e := sdk.Error{Code: code, Message: msg, Node: string(s.a.cfg.Node)}.Encode()
	return sdk.Value{Kind: sdk.Failure, Form: 1, Size: int64(len(e)), Bytes: e}
}

// connect tells the owner all that is held and wanted, and takes its answers.
func (b *borrow) connect(ctx context.Context) (opened bool, err error) {
	s := b.s
	st, err := s.a.links.stream(ctx, b.number, taskLane, wire.StreamTasks)
	if err != nil {
		return false, err
	}
	if err := st.WriteMsg(sdk.MsgPeerHello, sdk.PeerHello{}); err != nil {
		_ = st.Close()
		return false, err
	}
	w := newPeerWriter(s, st)
	defer w.close()
	stop := context.AfterFunc(ctx, w.finish)
	defer stop()
	s.turn(func(int64) {
		b.w = w
		var ids []byte
		for id := range b.held {
			ids = append(ids, id[:]...)
		}
		keep := ids
		for id := range b.copies {
			keep = append(keep, id[:]...)
		}
		w.put(sdk.AppendKeep(sdk.AppendIDs(nil, sdk.MsgHold, ids), keep), nil)
		for _, body := range b.copies {
			b.frame(sdk.MsgPeerCopy, body)
		}
		b.frame(sdk.MsgPeerSync, binary.LittleEndian.AppendUint64(nil, b.synced))
		for id := range b.wanted {
			b.ask(id)
		}
	})
	err = w.read(b.take)
	s.turn(func(int64) { b.w = nil })
	if err == nil {
		err = errs.New(errs.Unavailable, "the owner's agent ended the connection")
	}
	return true, err
}

// take takes a frame of the owner's. a.mu is held.
func (b *borrow) take(now int64, typ uint16, body []byte) error {
	switch typ {
	case sdk.MsgPeerSynced:
		if len(body) >= 8 {
			b.ack(binary.LittleEndian.Uint64(body))
		}
	case sdk.MsgPeerCopied:
		return b.s.copied(now, b.number, body)
	case sdk.MsgPeerSpare:
		if len(body) < 16 {
			return errs.New(errs.Corrupt, "PeerSpare is cut short")
		}
		v, nodes, _, err := sdk.CutGiven(body[16:])
		if err != nil {
			return err
		}
		b.s.core.Spare(wire.ObjectID(body[:16]), v, nodes)
	case sdk.MsgObject:
		if len(body) < 16 {
			return errs.New(errs.Corrupt, "Object is cut short")
		}
		id := wire.ObjectID(body[:16])
		v, nodes, _, err := sdk.CutGiven(body[16:])
		if err != nil {
			return err
		}
		if _, ok := b.wanted[id]; !ok {
			return nil
		}
		if v.Kind == sdk.Elsewhere {
			b.pull(id, v, nodes)
			return nil
		}
		delete(b.wanted, id)
		b.fetched(now, id, v)
	}
	return nil
}

// pull brings a large value here. a.mu is held.
func (b *borrow) pull(id wire.ObjectID, v sdk.Value, nodes []uint32) {
	s := b.s
	s.wg.Go(func() {
		err := s.a.transfer.Pull(s.ctx, id, nodes)
		s.turn(func(now int64) {
			tries, ok := b.wanted[id]
			if !ok {
				if err == nil && !s.core.Keeps(id) {
					s.store.Free([]wire.ObjectID{id}) // nobody wants it any more
				}
				return
			}
			switch {
			case err == nil:
				delete(b.wanted, id)
				v.Kind = sdk.Shared
				b.fetched(now, id, v)
			case errs.Is(err, errs.Exhausted):
				delete(b.wanted, id)
				s.core.NoRoom(now, id, err)
			case tries < maxFetches && !b.over:
				// The owner may not know yet that it is not there any more.
				b.wanted[id] = tries + 1
				for _, n := range nodes {
					b.frame(sdk.MsgPeerLost, binary.LittleEndian.AppendUint32(append([]byte(nil), id[:]...), n))
				}
				b.ask(id)
			default:
				delete(b.wanted, id)
				b.fetched(now, id, failure(s, "lost", err.Error()))
			}
		})
	})
}

// maxFetches is how often the value of an object is asked for again.
const maxFetches = 5

// fetched gives the reactor a value. a.mu is held.
func (b *borrow) fetched(now int64, id wire.ObjectID, v sdk.Value) {
	refs := make([]wire.ObjectID, v.NumRefs())
	for i := range refs {
		refs[i] = v.Ref(i)
	}
	b.s.core.Fetched(now, id, v.Kind, v.Form, v.Size, append([]byte(nil), v.Bytes...), refs)
	var err error // of one whose copy was dropped
	if v.Kind == sdk.Failure {
		err = errs.New(errs.Lost, "its owner does not give it again")
	}
	b.s.core.Restored(now, id, err)
}
