package slurm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/session"
)

// Where a firewall keeps nodes from connecting to the head, the machine of the head connects
// to them. A node's agent that gets no answer asks at wire.RouteSocket; the gate behind that
// looks for itself, listens, and writes where into the state directory (wayExt). The backend
// finds that there (ways.go) and keeps a connection at the gate that waits to be used.
// Whoever connects shows that it has read the file; what is then said has a TLS of its own.

const wayExt = ".way" // and the number of the task

// way is what a gate writes down.
type way struct {
	Node   wire.NodeID
	Host   string
	Addrs  []string // where it listens
	Secret []byte
	Head   []string // that it does not reach
	Why    string
}

const (
	lookBound = 2 * time.Second // of one look whether the head is reached directly
	// A head that has ended is refused for a while: that is no firewall.
	refusedLong = 15 * time.Second
	askBound    = 8 * time.Second // how long an agent waits for a connection
	proofBound  = 5 * time.Second
	mostSpares  = 4
	mostGreeted = 32 // at a time: who has the secret shows it at once
)

// gate is that of one node.
type gate struct {
	cfg      *wire.NodeConfig
	file     string // for its way
	say      io.Writer
	patience time.Duration // with a head that is refused
	ctx      context.Context
	wg       sync.WaitGroup

	spares  chan net.Conn // that came to be used
	greeted newest        // that have not shown the secret yet

	mu     sync.Mutex
	tcp    net.Listener // nil: nobody had to be let in; guarded by mu, as is what follows
	since  time.Time    // the head is not reached; zero: it is, or nobody has asked
	looked time.Time
	state  reached
	why    string
}

type reached int

const (
	answered reached = iota
	refused
	silent
)

// open has the node's agent ask at the gate, until done is called.
func (g *gate) open(ctx context.Context) (done func(), err error) {
	cfg := g.cfg
	socket := filepath.Join(cfg.Dir, wire.RouteSocket)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, diskError(err, cfg.Dir)
	}
	l, err := sockpath.Listen(socket)
	if err != nil {
		return nil, err
	}
	cfg.Addrs = append(slices.Clone(cfg.Addrs), session.RouteAddr(socket))
	cfg.Route = Name
	var cancel context.CancelFunc
	g.ctx, cancel = context.WithCancel(ctx)
	g.spares = make(chan net.Conn, mostSpares)
	g.wg.Go(func() { serveConns(l, &g.wg, g.ask) })
	return func() {
		cancel()
		_ = sockpath.Remove(socket)
		_ = l.Close()
		g.mu.Lock()
		if g.tcp != nil {
			_ = g.tcp.Close()
			_ = os.Remove(g.file)
		}
		g.mu.Unlock()
		g.wg.Wait()
		for len(g.spares) > 0 {
			_ = (<-g.spares).Close()
		}
	}, nil
}

// serveConns serves what comes, until l is closed.
func serveConns(l net.Listener, wg *sync.WaitGroup, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // of one connection, or there are no more files: neither is for ever
			time.Sleep(100 * time.Millisecond)
			continue
		}
		wg.Go(func() { serve(c) })
	}
}

// ask serves one connection of the node's agent, which wants the head.
func (g *gate) ask(c net.Conn) {
	defer c.Close()
	if uid, _, err := session.PeerCred(c); err != nil || uid != os.Getuid() || firstLine(c) != wire.RouteHead {
		return
	}
	late := time.NewTimer(askBound)
	defer late.Stop()
	for {
		select {
		case s := <-g.spares:
			if g.use(s, c) {
				return
			}
			continue
		default:
		}
		if !g.look() {
			return
		}
		again := time.NewTimer(time.Second)
		select {
		case s := <-g.spares:
			again.Stop()
			if g.use(s, c) {
				return
			}
		case <-again.C:
		case <-late.C:
			again.Stop()
			return
		case <-g.ctx.Done():
			again.Stop()
			return
		}
	}
}

// use has the agent speak over a connection that came; false = that has ended meanwhile.
func (g *gate) use(spare, agent net.Conn) bool {
	if ended(spare) {
		_ = spare.Close()
		return false
	}
	if _, err := spare.Write([]byte{1}); err != nil {
		_ = spare.Close()
		return false
	}
	splice(g.ctx, spare, agent)
	return true
}

// ended reports that the other side of an idle connection has closed it.
func ended(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1)) // nothing is to come
	_ = c.SetReadDeadline(time.Time{})
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// firstLine reads a short line, and nothing behind it.
func firstLine(c net.Conn) string {
	_ = c.SetReadDeadline(time.Now().Add(proofBound))
	defer c.SetReadDeadline(time.Time{})
	var line []byte
	for b := make([]byte, 1); len(line) < 64; line = append(line, b[0]) {
		if _, err := io.ReadFull(c, b); err != nil {
			return ""
		}
		if b[0] == '\n' {
			break
		}
	}
	return string(line)
}

// look sees whether the head can be reached by TCP, and lets its machine in when it cannot.
// It is false where the agent had better try by itself.
func (g *gate) look() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.looked) > time.Second {
		if time.Since(g.looked) > refusedLong { // what was then is over
			g.since = time.Time{}
		}
		g.state, g.why = tryAll(g.ctx, g.headAddrs())
		g.looked = time.Now()
	}
	switch {
	case g.state == answered:
		g.since = time.Time{}
		return false
	case g.since.IsZero():
		g.since = time.Now()
	}
	if g.tcp == nil && g.state == refused && time.Since(g.since) < g.patience {
		return false
	}
	if g.tcp == nil && g.ctx.Err() == nil {
		if err := g.letIn(); err != nil {
			fmt.Fprintf(g.say, "node %s on %s does not reach the head (%s), and cannot be reached: %v\n", g.cfg.Node, ownHost(), g.why, err)
			return false
		}
	}
	return true
}

// headAddrs are where the head was when the node was started, and where it said that it is.
func (g *gate) headAddrs() (out []string) {
	data, err := os.ReadFile(filepath.Join(g.cfg.Dir, "head.addrs"))
	if err == nil {
		_ = json.Unmarshal(data, &out)
	}
	for _, a := range append(out, g.cfg.Addrs...) {
		if _, _, err := net.SplitHostPort(a); err == nil && !strings.Contains(a, "/") && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// tryAll connects to all addresses at once.
func tryAll(ctx context.Context, addrs []string) (reached, string) {
	ctx, cancel := context.WithTimeout(ctx, lookBound)
	defer cancel()
	type result struct {
		addr string
		err  error
	}
	results := make(chan result, len(addrs))
	for _, a := range addrs {
		go func() {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", a)
			if err == nil {
				_ = c.Close()
			}
			results <- result{a, err}
		}()
	}
	state, why := refused, []string{}
	for range addrs {
		r := <-results
		if r.err == nil {
			return answered, ""
		}
		said := "no answer"
		if n, ok := errors.AsType[syscall.Errno](r.err); ok {
			said = n.Error()
		}
		if !errors.Is(r.err, syscall.ECONNREFUSED) {
			state = silent
		}
		why = append(why, r.addr+": "+said)
	}
	slices.Sort(why)
	return state, strings.Join(why, ", ")
}

// letIn listens and says where; mu must be held.
func (g *gate) letIn() error {
	l, err := listenIn(g.cfg.Interface, g.cfg.Ports)
	if err != nil {
		return err
	}
	w := way{Node: g.cfg.Node, Host: ownHost(), Secret: make([]byte, 32), Head: g.headAddrs(), Why: g.why}
	_, _ = rand.Read(w.Secret) // never fails
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, ip := range ownAddresses() {
		if host, _, _ := net.SplitHostPort(l.Addr().String()); host == "::" || host == "0.0.0.0" || host == ip {
			w.Addrs = append(w.Addrs, net.JoinHostPort(ip, port))
		}
	}
	if len(w.Addrs) == 0 {
		w.Addrs = []string{l.Addr().String()}
	}
	data, err := json.Marshal(w)
	if err == nil {
		err = writeWhole(g.file, data, false)
	}
	if err != nil {
		_ = l.Close()
		return err
	}
	fmt.Fprintf(g.say, "node %s on %s does not reach the head by TCP (%s): it waits to be reached at %s\n", w.Node, w.Host, w.Why, strings.Join(w.Addrs, ", "))
	g.tcp = l
	g.wg.Go(func() { serveConns(l, &g.wg, func(c net.Conn) { g.greet(c, w.Secret) }) })
	return nil
}

// greet takes a connection of who has the secret.
func (g *gate) greet(c net.Conn, secret []byte) {
	g.greeted.add(c)
	defer g.greeted.remove(c)
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce) // never fails
	_ = c.SetDeadline(time.Now().Add(proofBound))
	_, err := c.Write(nonce)
	got := make([]byte, sha256.Size)
	if err == nil {
		_, err = io.ReadFull(c, got)
	}
	if err != nil || !hmac.Equal(got, proof(secret, nonce)) {
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	alive(c)
	select {
	case g.spares <- c:
	default:
		_ = c.Close()
	}
}

// newest holds a bounded number of connections: one more closes the oldest, so that those who
// only connect do not keep others out.
type newest struct {
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func (n *newest) add(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns = append(n.conns, c); len(n.conns) > mostGreeted {
		_ = n.conns[0].Close()
		n.conns = slices.Delete(n.conns, 0, 1)
	}
}

func (n *newest) remove(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = slices.DeleteFunc(n.conns, func(o net.Conn) bool { return o == c })
}

func proof(secret, nonce []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(nonce)
	return h.Sum(nil)
}

// alive has the end of the other machine found out in half a minute.
func alive(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4})
	}
}

// listenIn listens as [network] says: at an interface, on one of a range of ports.
func listenIn(ifc, ports string) (net.Listener, error) {
	host := ""
	if ifc != "" {
		i, err := net.InterfaceByName(ifc)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "[network] interface = %q on %s", ifc, ownHost())
		}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				host = n.IP.String()
				break
			}
		}
	}
	lo, hi, _ := strings.Cut(ports, "-")
	from, _ := strconv.Atoi(strings.TrimSpace(lo))
	to, _ := strconv.Atoi(strings.TrimSpace(hi))
	var l net.Listener
	var err error
	for p := from; p <= max(from, to); p++ {
		if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p))); err == nil {
			return l, nil
		}
	}
	return nil, errs.Wrap(errs.Exhausted, err, "no port on %s", ownHost()).Hint("[network] ports names those that may be used")
}

// splice carries bytes between two connections until both directions have ended, or ctx
// has; it closes both.
func splice(ctx context.Context, a, b net.Conn) {
	defer a.Close()
	defer b.Close()
	stop := context.AfterFunc(ctx, func() { _ = a.Close(); _ = b.Close() })
	defer stop()
	carry := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if h, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			_ = h.CloseWrite()
		} else {
			_, _ = a.Close(), b.Close()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { carry(a, b) })
	carry(b, a)
	wg.Wait()
}
