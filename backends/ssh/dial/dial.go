package dial

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
)

// Dialer makes connections. A process has one: it holds what has been read and asked once.
type Dialer struct {
	o     Options
	slots chan struct{} // bounds the connections being made

	asking sync.Mutex // one question to the person at a time

	mu    sync.Mutex
	hosts map[string]*entry
	read  map[string]values   // of ssh_config, by what was asked
	keys  map[string]*keyFile // private keys, by path
	dir   string              // of control sockets, "" until it is needed
	asks  net.Listener        // where ssh's questions come in
}

// entry is a host that is reached or being reached.
type entry struct {
	ready   chan struct{} // closed when h or err is there
	h       *host
	err     error
	waiting int // for ready
	cancel  context.CancelFunc
}

// New makes a Dialer.
func New(o Options) *Dialer {
	def(&o.Parallel, 32)
	def(&o.Timeout, 10*time.Second)
	def(&o.KeepAlive, 5*time.Second)
	def(&o.KeepAliveCount, 3)
	def(&o.Retries, 8)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Dialer{o: o, slots: make(chan struct{}, o.Parallel), hosts: map[string]*entry{}, read: map[string]values{}, keys: map[string]*keyFile{}}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Close ends every connection.
func (d *Dialer) Close() error {
	d.mu.Lock()
	var all []*host
	for _, e := range d.hosts {
		e.cancel()
		if e.h != nil {
			all = append(all, e.h)
		}
	}
	dir, asks := d.dir, d.asks
	d.dir, d.asks = "", nil
	d.mu.Unlock()
	for _, h := range all {
		h.end(errClosed(h.s.alias))
	}
	if asks != nil {
		_ = asks.Close()
	}
	if dir != "" {
		return os.RemoveAll(dir)
	}
	return nil
}

// Dial gives a way to the host: a share in the connection there is, or a new one.
func (d *Dialer) Dial(ctx context.Context, t Target) (*Conn, error) {
	s, err := d.settings(ctx, t)
	if err != nil {
		return nil, err
	}
	return d.reach(ctx, s)
}

// reach is Dial of what is known about the host. Whoever comes second waits for the
// connection that the first is making; it is given up when nobody waits any more.
func (d *Dialer) reach(ctx context.Context, s *settings) (*Conn, error) {
	key := s.key()
	d.mu.Lock()
	e := d.hosts[key]
	if e == nil || e.h != nil && e.h.over() {
		e = &entry{ready: make(chan struct{})}
		var dialling context.Context
		dialling, e.cancel = context.WithCancel(context.Background())
		d.hosts[key] = e
		go d.establish(dialling, key, e, s)
	}
	e.waiting++
	d.mu.Unlock()
	select {
	case <-e.ready:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e.waiting--
	switch {
	case e.err != nil:
		return nil, e.err
	case e.h != nil && ctx.Err() == nil:
		e.h.refs++
		return &Conn{h: e.h}, nil
	}
	if e.waiting == 0 && e.h == nil {
		e.cancel()
		delete(d.hosts, key)
	} else if e.h != nil && e.h.refs == 0 && e.waiting == 0 {
		go e.h.end(errClosed(s.alias))
	}
	return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "connecting to %s", s.alias)
}

func (d *Dialer) establish(ctx context.Context, key string, e *entry, s *settings) {
	d.attend(ctx, s)
	n, err := d.connect(ctx, s)
	d.mu.Lock()
	defer d.mu.Unlock()
	defer close(e.ready)
	if err != nil {
		e.err = err
		if d.hosts[key] == e {
			delete(d.hosts, key)
		}
		return
	}
	e.h = newHost(d, key, s, n)
	if e.waiting == 0 {
		go e.h.end(errClosed(s.alias))
	}
}

// attend notes who is there to be asked while the connection is made.
func (d *Dialer) attend(ctx context.Context, s *settings) {
	s.sitting = Sitting{Terminal: d.o.Asker != nil}
	if a, ok := d.o.Asker.(Attended); ok {
		s.sitting = a.Sitting(ctx)
	}
	if (s.sitting.AcceptNew || d.o.AcceptNew) && s.strict != "no" {
		s.strict = "accept-new"
	}
}

// forget takes a host that has ended out of the table.
func (d *Dialer) forget(h *host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.hosts[h.key]; e != nil && e.h == h {
		delete(d.hosts, h.key)
	}
}

// release takes one share back and says whether it was the last.
func (d *Dialer) release(h *host) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.refs--
	e := d.hosts[h.key]
	return h.refs == 0 && (e == nil || e.h != h || e.waiting == 0)
}

// ParseTarget reads [user@]host[:port], with brackets around an IPv6 address that a port
// follows.
func ParseTarget(text string) (Target, error) {
	var t Target
	bad := func(why string) (Target, error) {
		return Target{}, errs.New(errs.Invalid, "%q is not a host: %s; give [user@]host[:port]", text, why)
	}
	rest := text
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		t.User, rest = rest[:i], rest[i+1:]
		if t.User == "" {
			return bad("no user stands before the @")
		}
	}
	port := ""
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		host, after, ok := strings.Cut(inner, "]")
		if !ok {
			return bad("a bracket is not closed")
		}
		t.Host = host
		if after != "" {
			if port, ok = strings.CutPrefix(after, ":"); !ok || port == "" {
				return bad("something stands after the bracket that is no port")
			}
		}
	} else if host, p, ok := strings.Cut(rest, ":"); ok && !strings.Contains(p, ":") {
		if p == "" {
			return bad("no port stands after the colon")
		}
		t.Host, port = host, p
	} else {
		t.Host = rest
	}
	if t.Host == "" || t.Host[0] == '-' || t.User != "" && t.User[0] == '-' || strings.ContainsFunc(t.Host+t.User, unfit) {
		return bad("names have letters, digits, '.', '_', '-' and ':', and do not begin with '-'")
	}
	if port != "" {
		if _, err := fmt.Sscanf(port, "%d", &t.Port); err != nil || fmt.Sprint(t.Port) != port || t.Port < 1 || t.Port > 65535 {
			return bad("the port is not from 1 to 65535")
		}
	}
	return t, nil
}

// unfit are runes that no name has and that a shell or a file of ours would misread.
func unfit(r rune) bool {
	return r <= ' ' || r == 0x7f || strings.ContainsRune("'`\"$\\;&<>|(){}*?!#,/=", r)
}

var _ io.ReadWriteCloser = (*Stream)(nil)
