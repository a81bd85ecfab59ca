package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const (
	tcpName   = "tcp"
	openBound = 10 * time.Second
	// ringBound is for how long a gang's connection may be silent. A link that was cut for
	// 10 s must not break it, and TCP tries again at r, 3r, 7r, ... (RFC 6298, 5.5): silence
	// lasts up to twice as long as the cut. A node that does not come back the head gives up
	// after 15 s, and says so.
	ringBound = 24 * time.Second
)

// peers is the node's TCP listener: other agents send the traffic of collectives there.
type peers struct {
	a    *agent
	l    net.Listener
	host string // as bound; "" = all addresses
	port string
}

// listenPeers takes the listener of an earlier agent up, or opens one: on the loopback
// address when the head is there, on the named interface, else on all addresses.
func listenPeers(ctx context.Context, a *agent) (*peers, error) {
	p := &peers{a: a}
	var err error
	if f := a.take(tcpName); f != nil {
		p.l, err = net.FileListener(f)
		f.Close()
		if err != nil {
			a.log.Warn("the kept listener cannot be used", "err", err)
			p.l = nil
		}
	}
	if p.l == nil {
		if p.l, err = openPort(ctx, a.cfg); err != nil {
			return nil, err
		}
		if f, err := p.l.(*net.TCPListener).File(); err == nil {
			a.storeFile(ctx, tcpName, f)
			f.Close()
		}
	}
	p.host, p.port, _ = net.SplitHostPort(p.l.Addr().String())
	if ip := net.ParseIP(p.host); ip == nil || ip.IsUnspecified() {
		p.host = ""
	}
	return p, nil
}

func openPort(ctx context.Context, cfg wire.NodeConfig) (net.Listener, error) {
	host, err := listenHost(cfg)
	if err != nil {
		return nil, err
	}
	from, to, err := ports(cfg.Ports)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	for p := from; p <= to; p++ {
		var lc net.ListenConfig
		if l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(p))); err == nil {
			return l, nil
		}
	}
	e := errs.Wrap(errs.Unavailable, err, "no port for the agent of node %s", cfg.Node)
	if cfg.Ports != "" {
		e = e.Hint("all of [network] ports = %q are in use; name more", cfg.Ports)
	}
	return nil, e
}

// ports reads "20000-20100"; "" is 0 to 0, whichever the kernel chooses.
func ports(s string) (from, to int, err error) {
	if s == "" {
		return 0, 0, nil
	}
	a, b, two := strings.Cut(s, "-")
	if !two {
		b = a
	}
	from, err = strconv.Atoi(strings.TrimSpace(a))
	to, err2 := strconv.Atoi(strings.TrimSpace(b))
	if err != nil || err2 != nil || from < 1 || to > 65535 || from > to {
		return 0, 0, errs.New(errs.Invalid, "[network] ports = %q: write a range such as 20000-20100", s)
	}
	return from, to, nil
}

// interfaces are the names of this machine's.
func interfaces() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

func listenHost(cfg wire.NodeConfig) (string, error) {
	if cfg.Interface != "" {
		ifc, err := net.InterfaceByName(cfg.Interface)
		if err != nil {
			return "", errs.Wrap(errs.Invalid, err, "[network] interface = %q on node %s, which has %s", cfg.Interface, cfg.Node, strings.Join(interfaces(), ", "))
		}
		addrs, err := ifc.Addrs()
		if err != nil {
			return "", errs.Wrap(errs.Unavailable, err, "interface %s", cfg.Interface)
		}
		for _, x := range addrs {
			if n, ok := x.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				return n.IP.String(), nil
			}
		}
		return "", errs.New(errs.Invalid, "[network] interface = %q has no address on node %s", cfg.Interface, cfg.Node)
	}
	for _, x := range cfg.Addrs {
		host, _, err := net.SplitHostPort(x)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return "", nil
		}
	}
	return "127.0.0.1", nil
}

// addr is where others reach this node as far as it can tell by itself.
func (p *peers) addr() string {
	host := p.host
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, p.port)
}

// addrsFor are where others reach it, best first, given the local end of a connection to
// the head: the interface that leads there, unless another was named, then all others.
func (p *peers) addrsFor(local net.Addr) []string {
	if p.host != "" {
		return []string{p.addr()}
	}
	out := ownAddrs(p.port)
	if t, ok := local.(*net.TCPAddr); ok {
		at := net.JoinHostPort(t.IP.String(), p.port)
		return append([]string{at}, slices.DeleteFunc(out, func(x string) bool { return x == at })...)
	}
	if len(out) == 0 {
		out = []string{p.addr()}
	}
	return out
}

// serve takes other agents' sessions until ctx ends.
func (p *peers) serve(ctx context.Context) error {
	return session.Serve(ctx, p.l, p.config(), p.session)
}

// config lets agents in.
func (p *peers) config() session.Config {
	cfg := p.a.sessionConfig()
	cfg.Allow = func(peer session.Peer) error {
		if peer.Role != secure.RoleAgent {
			return errs.New(errs.Permission, "this is the agent of node %s: only other agents connect here", p.a.cfg.Node).
				Hint("commands talk to the head")
		}
		return nil
	}
	return cfg
}

// session serves the streams of another agent.
func (p *peers) session(ctx context.Context, s *session.Session) {
	_ = s.Each(ctx, func(kind uint16, st *session.Stream) {
		switch {
		case p.a.links.serves[kind] != nil:
			p.a.links.serve(ctx, s, st, kind)
			return
		case kind == wire.StreamRelay:
			s.Bear(ringBound) // what is relayed knows its own bound
			p.a.routes.serve(ctx, st)
			return
		case kind != wire.StreamRing:
			_ = st.CloseWith(errs.New(errs.Permission, "an agent takes no streams of kind %d from another agent", kind))
			return
		}
		if err := p.ring(s, st); err != nil {
			level := slog.LevelWarn
			if errs.Is(err, errs.Unavailable) {
				level = slog.LevelDebug // it is only early, and asks again
			}
			p.a.log.Log(ctx, level, "a peer's connection is refused", "peer", s.Peer().String(), "err", err)
			_ = st.SetWriteDeadline(time.Now().Add(openBound))
			_ = st.WriteErr(err)
			_ = st.CloseWith(err)
		}
	})
}

// ring gives a stream to the group that it is for.
func (p *peers) ring(s *session.Session, st *session.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	var open wire.RingOpen
	switch {
	case err == io.EOF:
		return errs.New(errs.Corrupt, "the stream ended before it said what it is for")
	case err != nil:
		return err
	case typ != wire.MsgRingOpen:
		return errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgRingOpen)
	}
	if err := wire.Unmarshal(body, &open); err != nil {
		return err
	}
	if string(open.From) != s.Peer().Name {
		return errs.New(errs.Permission, "node %s says that it is node %s", s.Peer().Name, open.From)
	}
	s.Bear(ringBound)
	return p.a.groups.accept(open, st, func() error { return st.WriteMsg(wire.MsgOK, struct{}{}) })
}

// dial opens a stream to another node's part of a group, on a connection of its own.
func (p *peers) dial(ctx context.Context, gang wire.Try, to wire.GangNode, lane uint32) (net.Conn, error) {
	peer := wire.Peer{Number: to.Number, Node: to.Node, Addr: to.Addr}
	if known, err := p.a.links.dir.peer(ctx, to.Number); err == nil {
		peer = known // with all its addresses
	}
	s, err := p.a.routes.dial(ctx, peer, true)
	if err != nil {
		return nil, err
	}
	s.Bear(ringBound)
	st, err := s.Open(ctx, wire.StreamRing)
	if err == nil {
		err = knock(ctx, st, wire.RingOpen{Gang: gang, From: p.a.cfg.Node, Lane: lane})
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return &lone{Stream: st, s: s}, nil
}

// knock says what a stream is for and waits until the other side has taken it: a node
// that has not heard of the group yet says so, and is asked again.
func knock(ctx context.Context, st *session.Stream, open wire.RingOpen) error {
	stop := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
	defer stop()
	if err := st.WriteMsg(wire.MsgRingOpen, open); err != nil {
		return err
	}
	return answered(st)
}

// answered reads the other side's yes or no.
func answered(st *session.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		return err
	case typ == wire.MsgError:
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return err
		}
		return w.FromWire()
	case typ != wire.MsgOK:
		return errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgOK)
	}
	return nil
}

// lone is a stream with a session of its own, which ends with it.
type lone struct {
	*session.Stream
	s *session.Session
}

// Close ends the stream, then the session.
func (l *lone) Close() error {
	err := l.Stream.Close()
	_ = l.s.Close()
	return err
}
