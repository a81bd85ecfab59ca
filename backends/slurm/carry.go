package slurm

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Where nodes do not see the state directory (shared_home = false), neither the binary nor
// what the agents are started with is there. A job's step then is a shell that waits, on
// each node, for a program of the job's name in a directory of ours alone, and starts it.
// When the job runs, one short srun from here brings, on its standard input, the binary and
// what the agents are started with: the program put in place waits for that on a socket
// beside it. No key is in a script, an environment or a file.

const (
	// carryWait is how long a node waits for what is brought, landWait how long what
	// brings it waits for the node.
	carryWait = 10 * time.Minute
	landWait  = 30 * time.Second
	carryBase = "/tmp/launcher-"
)

// Of both scripts $0 is the job's name.
const (
	ownPlace = `d=` + carryBase + `$(id -u); mkdir -m 700 "$d" 2>/dev/null; p=$d/$0.$SLURMD_NODENAME; ` +
		`[ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ] || { echo "$d is not ours" >&2; exit 1; }; `
	// waitScript is run by the step's tasks.
	waitScript = ownPlace + `n=0; trap 'rm -f "$p"; rmdir "$d" 2>/dev/null; exit 143' TERM; ` +
		`until [ -x "$p" ]; do n=$((n+1)); [ $n -lt 3000 ] || exit 1; sleep 0.2; done; exec "$p" slurm-node --wait "$p.sock"`
	// landScript puts the program in place, of which $1 bytes come first.
	landScript = ownPlace + `umask 077; if [ -x "$p" ]; then head -c "$1" >/dev/null; else head -c "$1" >"$p.part" && chmod 700 "$p.part" && mv "$p.part" "$p"; fi && ` +
		`exec "$p" slurm-deliver --name "$0"`
)

// waitStep is the step of a job whose nodes do not see the state directory.
func waitStep(n int, name string) []string {
	words := step(n, "sh", "")
	return append(words[:len(words)-3], "-c", waitScript, name)
}

// carry brings a running job what its nodes wait for, once; the status says so meanwhile.
func (b *Backend) carry(r record) (why string) {
	key := r.path(recordExt)
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.carried[key]
	switch {
	case c == nil:
		c = &carrying{}
		b.carried[key] = c
	case c.busy || c.done || time.Now().Before(c.next):
		return c.why
	}
	c.busy, c.why = true, "the program and its key are being brought to the nodes of Slurm job "+r.Job
	b.carries.Go(func() {
		err := b.bring(b.life, r)
		b.mu.Lock()
		defer b.mu.Unlock()
		c.busy, c.done, c.why = false, err == nil, ""
		if err != nil {
			c.tries++
			c.next = time.Now().Add(min(time.Second<<min(c.tries, 6), time.Minute))
			c.why = "what the nodes of Slurm job " + r.Job + " wait for cannot be brought to them: " + err.Error()
		}
	})
	return c.why
}

// carrying is how far that is; guarded by the backend's mu.
type carrying struct {
	busy, done bool
	why        string
	tries      int
	next       time.Time
}

func (b *Backend) bring(ctx context.Context, r record) error {
	data, err := os.ReadFile(r.path(nodesExt))
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "what the nodes are to be started with")
	}
	binary, err := os.ReadFile(r.Binary)
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "the program that the nodes are to run")
	}
	n := strconv.Itoa(len(r.Nodes))
	_, err = b.cli.run(ctx, environment(environ(), nil), string(binary)+string(data), "srun", "--overlap", "--jobid="+r.Job, "-N", n, "-n", n, "--ntasks-per-node=1",
		"--cpu-bind=none", "--input=all", "--chdir=/", "--quiet", "sh", "-c", landScript, r.Name, strconv.Itoa(len(binary)))
	return err
}

// landing is where on this node the program of a job is put.
func landing(name string) (string, error) {
	if !wordRE.MatchString(name) {
		return "", errs.New(errs.Invalid, "%q is no job's name", name)
	}
	base := carryBase + strconv.Itoa(os.Getuid())
	if err := ownDirectory(base); err != nil {
		return "", err
	}
	return filepath.Join(base, name+"."+os.Getenv("SLURMD_NODENAME")), nil
}

// Deliver is the end of the short step on a node: it hands what comes on standard input to
// the program that waits there.
func Deliver(ctx context.Context, name string, in io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(in, maxNodesFile))
	if err != nil || len(data) == 0 {
		return errs.New(errs.Invalid, "nothing comes on standard input")
	}
	place, err := landing(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, landWait)
	defer cancel()
	for {
		c, err := net.Dial("unix", place+".sock")
		if err == nil {
			if err := hand(c, data); err != nil {
				return err
			}
			return reachesHead(ctx, data)
		}
		if _, err := os.Stat(place + ".taken"); err == nil { // an earlier step handed it over
			return reachesHead(ctx, data)
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Timeout, "no program waits on %s: %v", ownHost(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// reachesHead says whether this node's agent will find the head.
func reachesHead(ctx context.Context, data []byte) error {
	var f nodesFile
	if err := wire.Unmarshal(data, &f); err != nil {
		return errs.Wrap(errs.Corrupt, err, "what is brought")
	}
	g := gate{cfg: &f.Config}
	if state, why := tryAll(ctx, g.headAddrs()); state != answered {
		return errs.New(errs.Unavailable, "%s does not reach the head by TCP (%s)", ownHost(), why).
			Hint("[network] ports = \"LO-HI\" if only some ports are open; or start the work inside an allocation, by sbatch")
	}
	return nil
}

const maxNodesFile = 64 << 20

func hand(c net.Conn, data []byte) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(landWait))
	_, err := c.Write(data)
	if err == nil {
		err = c.(*net.UnixConn).CloseWrite()
	}
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 2))
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "handing over on %s", ownHost())
	}
	return nil
}

func unland(place string) {
	for _, ext := range []string{"", ".sock", ".taken"} {
		_ = os.Remove(place + ext)
	}
}

// sweepLandings removes what nodes left that were killed.
func sweepLandings(base string) {
	taken, _ := filepath.Glob(filepath.Join(base, "*.taken"))
	for _, t := range taken {
		f, err := os.Open(t)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			unland(strings.TrimSuffix(t, ".taken"))
		}
		f.Close()
	}
}

// await takes what is brought to a node; undo removes what it was brought by.
func await(ctx context.Context, socket string) (data []byte, undo func(), err error) {
	place := socket[:len(socket)-len(".sock")]
	undo = func() {
		unland(place)
		_ = os.Remove(filepath.Dir(place)) // the last one's
	}
	sweepLandings(filepath.Dir(place))
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, undo, errs.Wrap(errs.Permission, err, "waiting on %s", ownHost())
	}
	defer l.Close()
	late, cancel := context.WithTimeout(ctx, carryWait)
	defer cancel()
	stop := context.AfterFunc(late, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, undo, errs.New(errs.Timeout, "nothing was brought to %s", ownHost())
		}
		_ = c.SetDeadline(time.Now().Add(landWait))
		data, err = io.ReadAll(io.LimitReader(c, maxNodesFile))
		if err == nil && len(data) > 0 {
			var held *os.File // until this process ends: what is held by nobody is removed
			if held, err = os.OpenFile(place+".taken", os.O_CREATE|os.O_RDWR, 0o600); err == nil {
				err = syscall.Flock(int(held.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
				own := undo
				undo = func() { own(); held.Close() }
			}
			if err == nil {
				_, err = fmt.Fprint(c, "ok")
			}
		}
		c.Close()
		if err == nil && len(data) > 0 {
			return data, undo, nil
		}
	}
}

// nodesWait adds to a running job's status what its nodes wait for to come in.
func (b *Backend) nodesWait(r *record, st backends.Status, gates gateFiles) backends.Status {
	if st.State != backends.Running || r.End != nil || st.Why != "" {
		return st
	}
	if r.Apart {
		st.Why = b.carry(*r)
	} else if st.Why = b.ways(*r, gates.of(*r)); st.Why == "" {
		st.Why = r.complains()
	}
	return st
}
