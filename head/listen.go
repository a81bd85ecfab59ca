package head

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// listener is one TCP listener. A cluster with nodes on this machine only listens on the
// loopback address; one with nodes elsewhere on all, or on those of the interface that
// the spec names.
type listener struct {
	host string // as bound: "127.0.0.1", "" for all, or an interface's address
	port int
}

// nearby are backends whose nodes are on the head's machine.
var nearby = []string{"local", "fake"}

const (
	storedTCP  = wire.KeptTCP
	storedUnix = wire.KeptUnix
)

// listen opens the listeners: those that the supervisor kept, else those on the ports
// that the head before had, else new ones. Agents and commands then find the head where
// it was.
func (h *head) listen(ctx context.Context, g *errgroup.Group) (net.Listener, error) {
	hosts, err := h.hosts()
	if err != nil {
		return nil, err
	}
	for _, host := range hosts {
		l, err := h.open(ctx, host)
		if err != nil {
			return nil, err
		}
		g.Go(func() error { return session.Serve(ctx, l, h.session, h.serveSession) })
	}
	return h.openUnix(ctx)
}

// hosts says which addresses to listen on.
func (h *head) hosts() ([]string, error) {
	c := h.nowConfig()
	if !slices.ContainsFunc(c.Pools, func(p wire.Pool) bool { return !slices.Contains(nearby, p.Backend) }) {
		return []string{"127.0.0.1"}, nil
	}
	if c.Interface == "" {
		return []string{""}, nil
	}
	ifc, err := net.InterfaceByName(c.Interface)
	if err != nil { // it names the network of the nodes, which this machine need not be on
		h.log.Info("this machine has no such interface: listening on all", "interface", c.Interface, "has", interfaces())
		return []string{""}, nil
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "interface %s", c.Interface)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			// Commands on this machine come by the socket, so the one address is enough.
			return []string{n.IP.String()}, nil
		}
	}
	return nil, errs.New(errs.Invalid, "[network] interface = %q has no address", c.Interface)
}

func interfaces() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

// open listens on host.
func (h *head) open(ctx context.Context, host string) (net.Listener, error) {
	l, err := h.tcp(ctx, host)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listens = append(h.listens, &listener{host: host, port: l.Addr().(*net.TCPAddr).Port})
	return l, nil
}

// tcp gives a listener for host.
func (h *head) tcp(ctx context.Context, host string) (net.Listener, error) {
	if k := h.o.Keeper; k != nil {
		if f := k.FDs()[storedTCP+host]; f != nil {
			l, err := net.FileListener(f)
			if err == nil {
				return l, nil
			}
			h.log.Warn("the kept listener cannot be used", "err", err)
		}
		if f := k.FDs()[wire.KeptGiven]; f != nil {
			return net.FileListener(f)
		}
	}
	ports, err := h.ports(host)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	for _, p := range ports {
		var lc net.ListenConfig
		if l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(p))); err == nil {
			break
		}
	}
	if err != nil {
		e := errs.Wrap(errs.Unavailable, err, "no port for the head")
		if c := h.nowConfig(); c.Ports != "" {
			e = e.Hint("all of [network] ports = %q are in use; name more", c.Ports)
		}
		return nil, e
	}
	if h.o.Keeper != nil {
		f, err := l.(*net.TCPListener).File()
		if err == nil {
			err = h.o.Keeper.StoreFD(ctx, storedTCP+host, f)
			_ = f.Close()
		}
		if err != nil {
			h.log.Warn("the listener is not kept over a restart", "err", err)
		}
	}
	return l, nil
}

// ports are those to try, best first: the one that the head before had, then those of
// the spec, or whichever the kernel chooses.
func (h *head) ports(host string) ([]int, error) {
	var ports []int
	if old, err := readClusterFile(h.dir); err == nil && old.Host == h.host {
		for _, a := range old.Addrs {
			ahost, p, err := net.SplitHostPort(a)
			n, err2 := strconv.Atoi(p)
			if err == nil && err2 == nil && (host == "" || ahost == host) && !slices.Contains(ports, n) {
				ports = append(ports, n)
			}
		}
	}
	c := h.nowConfig()
	if c.Ports == "" {
		return append(ports, 0), nil
	}
	from, to, err := ParsePorts(c.Ports)
	if err != nil {
		return nil, err
	}
	ports = slices.DeleteFunc(ports, func(p int) bool { return p < from || p > to })
	for p := from; p <= to; p++ {
		ports = append(ports, p)
	}
	return ports, nil
}

// ParsePorts reads "20000-20100" or "20000".
func ParsePorts(s string) (from, to int, err error) {
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

// openUnix opens head.sock.
func (h *head) openUnix(ctx context.Context) (net.Listener, error) {
	path := filepath.Join(h.dir, socketFile)
	if k := h.o.Keeper; k != nil && k.FDs()[storedUnix] != nil {
		at, err := sockpath.Find(path)
		if err == nil {
			_, err = os.Lstat(at)
		}
		if err == nil {
			if l, err := net.FileListener(k.FDs()[storedUnix]); err == nil {
				return l, nil
			}
		}
	}
	l, err := sockpath.Listen(path)
	if err != nil {
		return nil, err
	}
	if h.o.Keeper != nil {
		f, err := l.File()
		if err == nil {
			err = h.o.Keeper.StoreFD(ctx, storedUnix, f)
			_ = f.Close()
		}
		if err != nil {
			h.log.Warn("the socket is not kept over a restart", "err", err)
		}
	}
	return l, nil
}

func (h *head) serveUnix(ctx context.Context, l net.Listener) error {
	cfg := h.session
	cfg.Identity, cfg.Authority, cfg.Joiner, cfg.MayRenew = nil, nil, nil, nil
	cfg.Cluster, cfg.Role, cfg.Name = h.config.Name, secure.RoleHead, "head"
	return session.ServeUnix(ctx, l, cfg, h.serveSession)
}

// widen listens on addresses that changed pools make necessary. Ones that are not
// necessary any more stay: agents may use them.
func (h *head) widen() error {
	hosts, err := h.hosts()
	if err != nil {
		return err
	}
	h.mu.Lock()
	hosts = slices.DeleteFunc(hosts, func(host string) bool {
		return slices.ContainsFunc(h.listens, func(l *listener) bool { return l.host == host || l.host == "" })
	})
	h.mu.Unlock()
	for _, host := range hosts {
		l, err := h.open(h.ctx, host)
		if err != nil {
			return err
		}
		h.wg.Go(func() {
			if err := session.Serve(h.ctx, l, h.session, h.serveSession); err != nil {
				h.log.Error("a listener ended", "host", host, "err", err)
			}
		})
	}
	if len(hosts) == 0 {
		return nil
	}
	return h.writeClusterFile(h.epoch())
}

// addresses are where agents reach the head, best first.
func (h *head) addresses() []string {
	h.mu.Lock()
	listens := slices.Clone(h.listens)
	h.mu.Unlock()
	var out []string
	add := func(host string, port int) {
		if a := net.JoinHostPort(host, strconv.Itoa(port)); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, l := range slices.Backward(listens) { // the widest was opened last
		if l.host != "" {
			add(l.host, l.port)
			continue
		}
		for _, ip := range ownIPs() {
			add(ip, l.port)
		}
		if h.host != "" {
			add(h.host, l.port)
		}
		add("127.0.0.1", l.port)
	}
	return out
}

// ownIPs are the addresses of this machine that others may reach, IPv4 first.
func ownIPs() []string {
	var four, six []string
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok || !n.IP.IsGlobalUnicast():
		case n.IP.To4() != nil:
			four = append(four, n.IP.String())
		default:
			six = append(six, n.IP.String())
		}
	}
	return append(four, six...)
}

func readClusterFile(dir string) (c wire.ClusterFile, err error) {
	b, err := os.ReadFile(filepath.Join(dir, clusterFile))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}

// writeClusterFile tells commands and links where the head is.
func (h *head) writeClusterFile(epoch wire.Epoch) error {
	c := h.nowConfig()
	b, err := json.MarshalIndent(wire.ClusterFile{
		Version:     1,
		Name:        c.Name,
		SpecPath:    c.SpecPath,
		Addrs:       h.addresses(),
		Fingerprint: h.ca.Fingerprint(),
		Build:       h.o.Version,
		Host:        h.host,
		PID:         os.Getpid(),
		Epoch:       epoch,
		Started:     h.started,
	}, "", "  ")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "%s", clusterFile)
	}
	return record.WriteFile(filepath.Join(h.dir, clusterFile), append(b, '\n'))
}

// remote is the broker where it is on another machine, else nil.
func (h *head) remote() Remote {
	r, _ := h.o.Broker.(Remote)
	return r
}

// serveSession serves what a peer opens: agents their control and log streams, and
// everybody requests. An agent relays those of the programs on its node.
func (h *head) serveSession(ctx context.Context, s *session.Session) {
	defer h.guests.come(h.clock.Now)()
	peer := s.Peer()
	said := make(chan struct{})
	var control atomic.Bool // there is its control stream
	_ = s.Each(ctx, func(kind uint16, st *session.Stream) {
		agent := peer.Role == secure.RoleAgent && !peer.Unix
		switch {
		case agent && (kind == wire.StreamRequest || kind == wire.StreamLogs):
			switch err := h.member(ctx, s, said); {
			case err != nil:
				_ = st.CloseWith(err)
			case kind == wire.StreamLogs:
				h.logs.serve(ctx, s, st)
			default:
				h.serveRequest(ctx, st)
			}
		case agent && kind == wire.StreamRelay:
			h.relay(ctx, s, st, said)
		case kind == wire.StreamRequest:
			h.serveRequest(ctx, st)
		case kind == wire.StreamBroker && h.remote() != nil && peer.Role == secure.RoleClient:
			h.remote().Attach(ctx, s, st, func(here bool) {
				if here {
					h.event(core.Retry{})
					h.outputs.again()
				}
			})
		case kind == wire.StreamControl && agent && !control.Swap(true):
			h.serveAgent(ctx, s, st, said)
			// Without it the session has no meaning, and its end tells the agent so.
			_ = s.Close()
		default:
			_ = st.CloseWith(errs.New(errs.Permission, "%s may not open a stream of kind %d", peer.Role, kind))
		}
	})
}
