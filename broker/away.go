package broker

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// A head that goes into the allocations of a pool (wire/seat.go) leaves a front in its
// place. It finds the head by what it is told before each move, else by head.seat, is its
// broker, relays commands, and what nodes connect to where the head was. When the head
// comes home, or is not heard of any more, the front ends with *Home, and the head goes on
// here: with the same journal, so that one that lives for all that is fenced.

// Home ends a front: the head is to be here.
type Home struct {
	Why     string        // "" = the head itself has said that
	Doubted []wire.NodeID // nodes that are perhaps lost
}

func (h *Home) Error() string { return "the head comes home: " + h.Why }

// Keeper holds listeners over the end of the process; see head.Keeper.
type Keeper interface {
	StoreFD(ctx context.Context, name string, f *os.File) error
	FDs() map[string]*os.File
}

const (
	awayRest  = 50 * time.Millisecond
	lastAway  = 500 * time.Millisecond
	dialBound = 5 * time.Second
	// awayLost is after how long without a connection the head goes on at home. One that ended
	// by silence had been silent for six seconds before.
	awayLost = 10 * time.Second
	// movingBound is how long a move may seem not to be one.
	movingBound = 5 * time.Second
	// lastWords is how long a head that has handed over may take to end its connection.
	lastWords = 2 * time.Second
)

// awayFront is a front whose head is in an allocation.
type awayFront struct {
	front
	id     *secure.Identity
	seat   wire.HeadSeat // guarded by mu, as is home
	home   *Home
	relays []net.Listener
}

// ReadSeat says where the head of the cluster in dir is; false = at home.
func ReadSeat(dir string) (s wire.HeadSeat, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, wire.HeadSeatFile))
	return s, err == nil && wire.Unmarshal(b, &s) == nil && s.Node != ""
}

// AwayMain runs a front until its head is to be here (*Home) or ctx ends.
func AwayMain(ctx context.Context, o FrontOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &awayFront{front: front{o: o, dir: o.Config.Dir, log: o.Log, poke: make(chan struct{}, 1), again: make(chan struct{}, 1), changed: make(chan struct{}), moving: true}}
	f.host, _ = os.Hostname()
	seat, ok := ReadSeat(f.dir)
	if !ok {
		return &Home{}
	}
	ca, err := secure.LoadAuthority(f.dir)
	if err == nil {
		f.id, err = ca.IssueSelf(secure.RoleClient, "broker", 0)
	}
	if err != nil {
		return err
	}
	f.heard = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ln, err := keptUnix(ctx, o.Keeper, filepath.Join(f.dir, headSocket))
	if err != nil {
		return err
	}
	f.openRelays(ctx, &seat)
	f.seated(seat)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		cfg := session.Config{Cluster: o.Config.Name, Role: secure.RoleHead, Name: "head", Version: o.Version, Log: o.Log}
		_ = session.ServeUnix(ctx, ln, cfg, f.serve)
	})
	wg.Go(func() { f.id.Keep(ctx, ca.Renewer(f.id.Subject(), 0), f.log) })
	for _, l := range f.relays {
		wg.Go(func() { f.relay(ctx, l) })
	}
	return f.follow(ctx)
}

// keptUnix takes up the socket that the head had, or another front.
func keptUnix(ctx context.Context, k Keeper, path string) (net.Listener, error) {
	if k != nil && k.FDs()[wire.KeptUnix] != nil {
		if at, err := sockpath.Find(path); err == nil {
			if _, err := os.Lstat(at); err == nil {
				return net.FileListener(k.FDs()[wire.KeptUnix])
			}
		}
	}
	l, err := sockpath.Listen(path)
	if err != nil || k == nil {
		return l, err
	}
	if f, err := l.File(); err == nil {
		_ = k.StoreFD(ctx, wire.KeptUnix, f)
		_ = f.Close()
	}
	return l, nil
}

// openRelays listens where nodes found the head before it went, so that whoever knows
// nothing newer still does.
func (f *awayFront) openRelays(ctx context.Context, seat *wire.HeadSeat) {
	k := f.o.Keeper
	if k != nil {
		for name, file := range k.FDs() {
			if len(name) >= len(wire.KeptTCP) && name[:len(wire.KeptTCP)] == wire.KeptTCP {
				if l, err := net.FileListener(file); err == nil {
					f.relays = append(f.relays, l)
				}
			}
		}
	}
	if len(f.relays) > 0 || len(seat.Front) == 0 {
		return
	}
	host, port, _ := net.SplitHostPort(seat.Front[0])
	if slices.ContainsFunc(seat.Front, func(a string) bool { h, _, _ := net.SplitHostPort(a); return h != host }) {
		host = ""
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		f.log.Warn("nodes do not find the head by way of this machine", "err", err)
		return
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	for i, a := range seat.Front {
		h, _, _ := net.SplitHostPort(a)
		seat.Front[i] = net.JoinHostPort(h, port)
	}
	f.relays = []net.Listener{l}
	if k != nil {
		if file, err := l.(*net.TCPListener).File(); err == nil {
			_ = k.StoreFD(ctx, wire.KeptTCP+host, file)
			_ = file.Close()
		}
	}
}

// relay joins whoever connects with the head, until ctx ends. Both prove to each other who
// they are.
func (f *awayFront) relay(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-time.After(awayRest):
				continue
			case <-ctx.Done():
				return
			}
		}
		wg.Go(func() {
			defer c.Close()
			f.mu.Lock()
			addrs := slices.Clone(f.seat.Addrs)
			f.mu.Unlock()
			d := net.Dialer{Timeout: dialBound}
			for _, a := range addrs {
				to, err := d.DialContext(ctx, "tcp", a)
				if err == nil {
					pipe(ctx, c, to)
					return
				}
			}
		})
	}
}

// pipe copies both ways until either end is closed, or ctx ends.
func pipe(ctx context.Context, a, b net.Conn) {
	var wg sync.WaitGroup
	shut := func() { _ = a.Close(); _ = b.Close() }
	defer context.AfterFunc(ctx, shut)()
	wg.Go(func() { _, _ = io.Copy(a, b); shut() })
	_, _ = io.Copy(b, a)
	shut()
	wg.Wait()
}

// seated notes where the head is.
func (f *awayFront) seated(s wire.HeadSeat) {
	f.mu.Lock()
	if len(s.Front) == 0 {
		s.Front = f.seat.Front
	}
	f.seat = s
	f.post = post{Pool: wire.Pool{Name: f.o.Config.Roam, Places: []string{"node " + string(s.Node)}}}
	f.mu.Unlock()
	if err := f.writeClusterFile(s.Addrs...); err != nil {
		f.log.Warn("commands on other machines do not find the head", "err", err)
	}
}

// follow is connected to the head, wherever it is, until it is to be here.
func (f *awayFront) follow(ctx context.Context) error {
	rest := awayRest
	for {
		met, err := f.visit(ctx)
		f.mu.Lock()
		home, heard, at := f.home, f.heard, f.seat.Node
		f.mu.Unlock()
		switch {
		case home != nil:
			return home
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case met:
			f.log.Info("the connection to the head ended", "node", at, "err", err)
			rest = awayRest
			f.mu.Lock()
			f.heard = time.Now()
			f.mu.Unlock()
		case time.Since(heard) >= awayLost:
			why := "node " + string(at) + ", where it was, has not been heard of for " + awayLost.String()
			f.log.Warn("the head is lost; it goes on here", "node", at, "err", err)
			if err := writeWhole(filepath.Join(f.dir, wire.HeadSeatFile), wire.Marshal(wire.HeadSeat{})); err != nil {
				return err
			}
			return &Home{Why: why, Doubted: []wire.NodeID{at}}
		}
		select {
		case <-time.After(rest):
			rest = min(2*rest, lastAway)
		case <-f.poke:
			rest = awayRest
		case <-ctx.Done():
		}
		if s, ok := ReadSeat(f.dir); ok && s.Node != at {
			f.seated(s)
			rest = awayRest
		}
	}
}

// visit connects to the head and serves it as long as the connection lasts.
func (f *awayFront) visit(ctx context.Context) (met bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	seat := f.seat
	f.mu.Unlock()
	dial, stop := context.WithTimeout(ctx, dialBound)
	s, err := session.Dial(dial, seat.Addrs, session.Config{Identity: f.id, Version: f.o.Version, Log: f.log}, secure.RoleHead)
	stop()
	if err != nil {
		return false, err
	}
	defer s.Close()
	w := Where{Home: f.o.Config.Home, Binary: f.o.Config.Binary, Host: f.host, Addrs: seat.Front, Again: f.again}
	w.Here = func() {
		met = true
		f.log.Info("connected to the head", "node", seat.Node)
		f.front.met(s)
	}
	w.Head = func(st *session.Stream) {
		if f.take(ctx, st) {
			select {
			case <-s.Done():
			case <-time.After(lastWords):
			}
			cancel()
		}
	}
	err = f.o.Broker.ServeHead(ctx, s, w)
	return met, err
}

// take serves what the head says of its moves; true = it comes here.
func (f *awayFront) take(ctx context.Context, st *session.Stream) bool {
	_ = st.SetDeadline(time.Now().Add(2 * headBound))
	typ, body, err := st.ReadMsg()
	if err != nil {
		return false
	}
	switch typ {
	case wire.MsgHeadTry:
		var at wire.HeadReady
		if wire.Unmarshal(body, &at) == nil {
			_ = st.WriteMsg(wire.MsgHeadTried, wire.HeadTried{Why: session.Reach(ctx, at.Addrs)})
			_ = st.CloseWrite()
		}
	case wire.MsgHeadMoves:
		var m wire.HeadMoves
		if wire.Unmarshal(body, &m) == nil && m.Seat.Node != "" {
			f.seated(m.Seat)
		}
	case wire.MsgHeadTake:
		var m wire.HeadTake
		if err := wire.Unmarshal(body, &m); err != nil {
			_ = st.WriteErr(err)
			return false
		}
		f.mu.Lock()
		front := f.seat.Front
		f.mu.Unlock()
		if err := st.WriteMsg(wire.MsgHeadReady, wire.HeadReady{Addrs: front}); err != nil {
			return false
		}
		if typ, _, err := st.ReadMsg(); err != nil || typ != wire.MsgHeadGo {
			return false
		}
		f.mu.Lock()
		f.home = &Home{Why: m.Config.Why}
		f.mu.Unlock()
		_ = st.WriteMsg(wire.MsgOK, struct{}{})
		_ = st.CloseWrite()
		return true
	}
	return false
}
