package ssh

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

//go:embed doctor.sh
var doctorScript string

const (
	// examineBound is how long a host may take to be looked at.
	examineBound = 90 * time.Second
	maxSkew      = 10 * time.Second
	leastShm     = 64 << 20
	leastFiles   = 4096
	leastProcs   = 4096
)

// Finding is one thing about a host. Level is ok, note (worth knowing), warning (will
// hurt) or error (will not work).
type Finding struct{ Level, What, Fix string }

// patient is one host that is looked at.
type patient struct {
	site
	found   []Finding
	address string // where other hosts reach it
}

func (p *patient) tell(level, fix, format string, args ...any) {
	p.found = append(p.found, Finding{level, p.Name + ": " + fmt.Sprintf(format, args...), fix})
}

// fail tells an error, whose text names the host.
func (p *patient) fail(err error) {
	what := err.Error()
	if !strings.Contains(what, p.Name) {
		what = p.Name + ": " + what
	}
	p.found = append(p.found, Finding{"error", what, strings.Join(errs.HintsOf(err), "; ")})
}

// Examine looks at a pool's hosts for what would go wrong. Nothing is started or left
// there. binary is what would be copied, port one that nodes may use among themselves.
func (b *Backend) Examine(ctx context.Context, pool string, o backends.Options, places []string, binary string, port int) []Finding {
	all := make([]patient, len(places))
	each := func(f func(ctx context.Context, i int)) {
		var wg sync.WaitGroup
		turns := make(chan struct{}, maxHosts)
		for i := range all {
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				ctx, cancel := context.WithTimeout(ctx, examineBound)
				defer cancel()
				f(ctx, i)
			})
		}
		wg.Wait()
	}
	each(func(ctx context.Context, i int) {
		p := &all[i]
		p.Name = places[i]
		s, err := b.site(backends.Request{Pool: pool, Options: o, Nodes: make([]wire.NodeID, 1), Epochs: make([]wire.Epoch, 1), Places: places[i : i+1]})
		if err == nil {
			p.site = s
			err = b.look(ctx, p, binary)
		}
		if err != nil {
			p.fail(err)
		}
	})
	// Each asks for the next one that could be reached: a wall between some is seen by
	// somebody.
	var up []int
	for i := range all {
		if all[i].address != "" {
			up = append(up, i)
		}
	}
	next := map[int]int{}
	for k, i := range up {
		if j := up[(k+1)%len(up)]; all[j].address != all[i].address {
			next[i] = j
		}
	}
	each(func(ctx context.Context, i int) {
		if j, ok := next[i]; ok {
			b.probe(ctx, &all[i], &all[j], binary, port)
		}
	})
	var out []Finding
	for i := range all {
		out = append(out, all[i].found...)
	}
	return out
}

// ask runs the script on a host; said gets what it says, until "end".
func (b *Backend) ask(ctx context.Context, s site, binary, what string, said func(t *talk, verb, rest string)) (*talk, error) {
	ch, err := b.dial.Open(ctx, s, shell)
	if err != nil {
		return nil, err
	}
	defer ch.Close()
	stop := context.AfterFunc(ctx, func() { ch.Close() })
	defer stop()
	t := b.provision(s, binary).talk(ch)
	t.late = newWatchdog(examineBound, func() {})
	defer t.late.stop()
	go func() { // beside: a host that reads nothing must not hold us
		_, _ = io.WriteString(ch, t.p.header(t.marker)+script+doctorScript+what+"\n")
	}()
	for greeted := false; ; {
		verb, rest, err := t.next()
		switch {
		case err != nil && ctx.Err() != nil:
			return t, errs.New(errs.Timeout, "%s: the host did not finish in %s: %s", s.Name, examineBound, t.said()).Hint("a rc file that waits for input may be why: try `ssh %s true`", s.Name)
		case err != nil && greeted:
			return t, errs.New(errs.Unavailable, "%s: the host's script ended: %s", s.Name, t.said())
		case err != nil:
			return t, t.mute()
		case verb == "noise":
			return t, t.endless()
		case verb == "end":
			return t, nil
		case verb == "hello":
			greeted = true
		case verb == "not":
			t.not = append(t.not, rest)
		case verb == "fail" && !strings.HasPrefix(rest, "directory"):
			return t, t.failed(rest) // nothing more comes
		default:
			said(t, verb, rest)
		}
	}
}

// look asks a host how it is.
func (b *Backend) look(ctx context.Context, p *patient, binary string) error {
	var name, arch, root, gpus string
	var free, shm int64
	t, err := b.ask(ctx, p.site, binary, "look", func(t *talk, verb, rest string) {
		first, more, _ := strings.Cut(rest, " ")
		n, nerr := strconv.ParseInt(first, 10, 64)
		number := nerr == nil
		switch verb {
		case "host":
			name = rest
		case "arch":
			arch = rest
		case "address":
			p.address = rest
		case "clock":
			if skew := time.Until(time.Unix(n, 0)).Round(time.Second); number && (skew > maxSkew || skew < -maxSkew) {
				p.tell("warning", "run chrony, ntpd or systemd-timesyncd there and here: certificates are only valid at their time", "its clock is %s from this machine's", skew)
			}
		case "room":
			free, root = n<<10, more
			for _, why := range t.not {
				p.tell("note", "", "%s; %s is used", why, root)
			}
		case "shm":
			if shm = n << 10; !number || shm < leastShm {
				p.tell("warning", "mount -o remount,size=50% /dev/shm, or docker run --shm-size", "/dev/shm has %s left: objects and gangs share memory there", wire.Bytes(shm))
			}
		case "files":
			if number && n < leastFiles {
				p.tell("warning", "raise nofile in its /etc/security/limits.conf", "at most %d open files a process", n)
			}
		case "processes":
			if number && n < leastProcs {
				p.tell("warning", "raise nproc in its /etc/security/limits.conf", "at most %d processes for this user", n)
			}
		case "filesize":
			if number {
				p.tell("warning", "raise fsize in its /etc/security/limits.conf", "files may have at most %s", wire.Bytes(n))
			}
		case "nopython":
			p.tell("note", "install python3 3.9 or newer there, or bring one with `setup` or `python` in the pool", "%s: it takes commands and no Python programs", rest)
		case "gpus":
			gpus = ", GPUs: " + rest
		case "nogpu":
			p.tell("warning", "see that nvidia-smi works there, or say resources = { gpu = N } in the pool", "its GPUs cannot be used: %s", rest)
		case "fail":
			p.fail(t.failed(rest))
		}
	})
	if err != nil {
		p.address = ""
		return err
	}
	if strings.TrimSpace(t.noise.String()) != "" {
		p.tell("note", "print only to terminals there: `[ -t 1 ] || return` at the top of .bashrc", "its login prints to programs, too (launcher does not mind, scp does): %s", t.said())
	}
	if root != "" {
		p.tell("ok", "", "%s, %s, %s left in %s, /dev/shm %s%s", name, arch, wire.Bytes(free), root, wire.Bytes(shm), gpus)
	}
	return nil
}

// probe has a host try the way to another.
func (b *Backend) probe(ctx context.Context, from, to *patient, binary string, port int) {
	_, err := b.ask(ctx, from.site, binary, fmt.Sprintf("probe %s %d", quote(to.address), port), func(_ *talk, verb, rest string) {
		if verb == "nothing" {
			from.tell("warning", `let hosts reach one another by TCP (ports = "FROM-TO" in [network] names the ports); gangs with torch's own sockets need it`,
				"no way from it to %s (%s port %d): %s", to.Name, to.address, port, rest)
		}
	})
	if err != nil {
		from.fail(err)
	}
}
