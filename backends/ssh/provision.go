package ssh

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire/session"
)

//go:embed provision.sh
var script string

// shell is what every login shell can be told to become.
const shell = "exec /bin/sh -s"

const (
	// quiet is how long a host may take between two things that it says, and maxNoise how
	// much its rc files may print before ours.
	quiet    = time.Minute
	maxNoise = 1 << 20
)

// channel is a command's standard streams on a host.
type channel interface {
	io.ReadWriteCloser
	Stderr() string
}

// provision is one host being made ready: the script runs there, the binary is copied if
// it is not there, and the script becomes the binary.
type provision struct {
	host  string // for people
	dir   string // the pool's option, or ""
	who   string // whose copy it is; letters and digits
	shelf *shelf
	how   string // in place of the best that the host can unpack

	spreads  func(sum string) *spread // nil: it takes the binary from here
	patience time.Duration            // with other hosts
	release  func(ok bool)            // gives the turn back that the host has
}

// done gives the host's turn back, if it has one.
func (p *provision) done(ok bool) {
	if p.release != nil {
		p.release(ok)
		p.release = nil
	}
}

// place is where the host was told to put things.
type place struct {
	Name string // the host's own
	Root string
	Arch string
	Addr netip.Addr // where its sshd was reached, or none
}

// header is what the script is told.
func (p *provision) header(marker string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "M=%s D=%s U=%s W=%d\n", marker, quote(p.dir), p.who, max(1, int(p.patience/time.Second)))
	for _, a := range arches {
		if bin, err := p.shelf.get(a); err == nil {
			fmt.Fprintf(&b, "H_%s=%s N_%s=%d\n", a, bin.sum, a, bin.size)
		} else {
			fmt.Fprintf(&b, "H_%s= N_%s=\n", a, a)
		}
	}
	return b.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// run makes the host ready over ch and gives the connection to the process there. On an
// error ch is closed. The turn of a host that took the binary from here is still to be
// given back (done).
func (p *provision) run(ctx context.Context, ch channel) (net.Conn, place, error) {
	t := p.talk(ch)
	stop := context.AfterFunc(ctx, func() { ch.Close() })
	t.late = newWatchdog(quiet, func() { ch.Close() })
	err := t.run(ctx)
	free := stop()
	inTime := t.late.stop()
	if err == nil && free && inTime {
		return session.Piped(piece{t.in, ch}, ch), t.place, nil
	}
	ch.Close()
	switch {
	case ctx.Err() != nil:
		err = errs.Wrap(errs.Unknown, context.Cause(ctx), "%s", p.host)
	case !inTime:
		err = errs.New(errs.Timeout, "%s: the host says nothing for %s", p.host, quiet).Hint("a rc file that waits for input may be why: try `ssh %s true`", p.host)
	}
	return nil, place{}, err
}

func (p *provision) talk(ch channel) *talk {
	return &talk{p: p, ch: ch, marker: "launcher-" + rand.Text()[:16], in: bufio.NewReaderSize(ch, 64<<10), tried: map[*lender]bool{}}
}

// watchdog bites once when it has not been fed for a while.
type watchdog struct {
	d time.Duration

	mu   sync.Mutex
	t    *time.Timer
	over bool
	bit  bool
}

func newWatchdog(d time.Duration, bite func()) *watchdog {
	w := &watchdog{d: d}
	w.t = time.AfterFunc(d, func() {
		w.mu.Lock()
		w.bit = !w.over
		w.mu.Unlock()
		if w.bit {
			bite()
		}
	})
	return w
}

func (w *watchdog) feed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over && !w.bit {
		w.t.Reset(w.d)
	}
}

// stop ends it and reports whether it has not bitten.
func (w *watchdog) stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.t.Stop()
	return !w.bit
}

// piece is what is left of a buffered reader.
type piece struct {
	io.Reader
	io.Closer
}

// talk is the conversation with the script.
type talk struct {
	p      *provision
	ch     channel
	marker string
	in     *bufio.Reader
	late   *watchdog
	place  place
	not    []string // directories that would not do
	noise  bytes.Buffer
	from   *lender          // it is taking the binary from this host
	tried  map[*lender]bool // and could not from these
}

// next reads what the host says next, whatever else it prints; "noise" is too much of that.
func (t *talk) next() (verb, rest string, err error) {
	seen := 0
	for {
		line, err := t.in.ReadString('\n')
		if seen += len(line); seen > maxNoise {
			return "noise", "", nil
		}
		if words, ok := strings.CutPrefix(line, t.marker+" "); ok && err == nil {
			t.late.feed()
			verb, rest, _ := strings.Cut(strings.TrimRight(words, "\n"), " ")
			return verb, rest, nil
		}
		t.noise.WriteString(line)
		if t.noise.Len() > 4096 {
			t.noise.Next(t.noise.Len() - 4096)
		}
		if err != nil {
			return "", "", err
		}
	}
}

// said is the last of what the host printed that was not ours, for an error.
func (t *talk) said() string {
	s := strings.TrimSpace(t.noise.String() + "\n" + t.ch.Stderr())
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > 3 {
		lines = lines[len(lines)-3:]
	}
	if len(lines) == 0 {
		return "it printed nothing"
	}
	return "it printed " + strconv.Quote(strings.Join(lines, "; "))
}

func (t *talk) run(ctx context.Context) error {
	// Written beside: a host that reads nothing must not hold us.
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(t.ch, t.p.header(t.marker)+script+"main\n")
	}()
	greeted := false
	for {
		verb, rest, err := t.next()
		if err != nil {
			if !greeted {
				return t.mute()
			}
			return errs.New(errs.Unavailable, "%s: the host's script ended: %s", t.p.host, t.said())
		}
		switch verb {
		case "noise":
			return t.endless()
		case "hello":
			greeted = true
		case "host":
			t.place.Name = rest
		case "arch":
			t.place.Arch = rest
		case "address":
			t.place.Addr, _ = netip.ParseAddr(rest)
		case "not":
			t.not = append(t.not, rest)
		case "root":
			t.place.Root = rest
		case "want":
			<-written // else the host could not have asked
			if err := t.give(ctx, rest); err != nil {
				return err
			}
		case "run":
			if t.from != nil {
				t.p.done(true)
			}
			return nil
		case "fail":
			return t.failed(rest)
		}
	}
}

// mute is a login that ends without having run the script.
func (t *talk) mute() error {
	return errs.New(errs.Invalid, "%s: its login shell runs no commands: %s", t.p.host, t.said()).
		Hint("`ssh %s /bin/sh -c true` must work without a terminal; an account whose shell is nologin cannot be used", t.p.host)
}

func (t *talk) endless() error {
	return errs.New(errs.Invalid, "%s: the login prints without end: %s", t.p.host, t.said()).
		Hint("see what its rc files print: `ssh %s true | head`", t.p.host)
}

// failed makes an error of what the script says.
func (t *talk) failed(text string) error {
	what, rest, _ := strings.Cut(text, " ")
	h := t.p.host
	switch what {
	case "system":
		return errs.New(errs.Invalid, "%s: nodes run on Linux, and the host runs %s", h, rest)
	case "machine":
		return errs.New(errs.Invalid, "%s: there is no launcher for machines of architecture %s", h, rest)
	case "binary":
		arch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[rest]
		_, err := t.p.shelf.get(arch)
		if err == nil {
			err = errs.New(errs.NotFound, "there is no binary for it")
		}
		return errs.Wrap(errs.NotFound, err, "%s: the host is of architecture %s", h, rest)
	case "directory":
		e := errs.New(errs.Exhausted, "%s: no directory there will do: %s", h, strings.Join(t.not, "; "))
		if rest == "" {
			return e.Hint("name one with `directory` in the pool")
		}
		return e.Hint("make it usable, or name another with `directory` in the pool")
	case "space":
		return errs.New(errs.Exhausted, "%s: the binary could not be written: %s", h, rest).Hint("make room there, or name another place with `directory` in the pool")
	case "sum":
		return errs.New(errs.Corrupt, "%s: %s", h, rest)
	case "run":
		return errs.New(errs.Invalid, "%s: the binary does not run there: %s", h, rest)
	}
	return errs.New(errs.Unavailable, "%s: %s", h, text)
}

// step is how much is written at once: each step that gets through is a sign of life.
const step = 256 << 10

// give answers a host that wants the binary: it may take it from another host, or it is sent
// from here.
func (t *talk) give(ctx context.Context, want string) error {
	if t.from != nil {
		t.tried[t.from] = true
	}
	t.p.done(false)
	t.from = nil
	words := strings.Fields(want)
	b, err := t.p.shelf.get(t.place.Arch)
	if err != nil || len(words) != 3 {
		return errs.New(errs.Corrupt, "%s: the host's script asks for %q of %q", t.p.host, want, t.place.Arch)
	}
	have, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil || have < 0 || have > b.size {
		return errs.New(errs.Corrupt, "%s: the host's script has %s of %d bytes", t.p.host, words[0], b.size)
	}
	for t.p.spreads != nil && words[2] != "none" {
		from, release, err := t.p.spreads(b.sum).turn(ctx, t.place.Addr, t.tried, t.late.feed)
		if err != nil {
			return err
		}
		t.p.release = release
		if from == nil {
			break
		}
		port, secret, err := from.lend(ctx, have)
		if err != nil {
			t.tried[from] = true
			t.p.done(false)
			continue
		}
		t.from = from
		_, _ = fmt.Fprintf(t.ch, "host %s %d %s\n", from.addr, port, secret) // what it says next shows whether that came
		return nil
	}
	return t.send(b, words[1], have)
}

// send copies the binary, from where an earlier copy was cut.
func (t *talk) send(b binary, how string, from int64) error {
	how = cmp.Or(t.p.how, how)
	if how != "zstd" && how != "gzip" {
		how = "none"
	}
	data, done, err := t.p.shelf.pack(b, how, from)
	if err != nil {
		return err
	}
	// Written beside: the script may end in the middle, with a reason to read.
	go func() {
		defer done()
		if _, err := fmt.Fprintf(t.ch, "%s %d\n", how, len(data)); err != nil {
			return
		}
		for at := 0; at < len(data); at += step {
			if _, err := t.ch.Write(data[at:min(at+step, len(data))]); err != nil {
				return
			}
			t.late.feed()
		}
	}()
	return nil
}
