package supervisor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/shm"
	"launcher/wire"
)

// maxConfig bounds a node's configuration.
const maxConfig = 16 << 20

// GuardMain is a node's first process (command `node`). It reads a wire.NodeConfig from
// stdin to its end, runs the node in the foreground, and returns when nothing of it is
// left: nil after an orderly end, else an error that says what the supervisor died of.
func GuardMain(ctx context.Context, stdin io.Reader) error {
	small()
	config, err := io.ReadAll(io.LimitReader(stdin, maxConfig))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading the node's configuration")
	}
	var cfg wire.NodeConfig
	if err := wire.Unmarshal(config, &cfg); err != nil {
		return errs.Wrap(errs.Invalid, err, "standard input holds no configuration of a node").Hint("`launcher node` is started by a backend, not by hand")
	}
	if !filepath.IsAbs(cfg.Dir) || cfg.Node == "" {
		return errs.New(errs.Invalid, "the configuration of node %q names no directory", cfg.Node)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "the directory of node %s", cfg.Node)
	}
	// A guard that was killed a moment ago may still be ending.
	held, err := lock(filepath.Join(cfg.Dir, "node.lock"), 5*time.Second)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return errs.Wrap(errs.Unavailable, err, "becoming sub-reaper")
	}
	g := &guard{dir: cfg.Dir, mark: nodeMark(cfg) + newLife(cfg)}
	// Were all of an earlier life of this node killed in one instant, what they left is
	// still there: nobody but us may answer for this directory now.
	sweep, cancel := context.WithTimeout(ctx, killBound)
	proc.KillMarked(sweep, nodeMark(cfg))
	cancel()
	if err := g.start(cfg, config); err != nil {
		return err
	}
	return g.wait(ctx)
}

type guard struct {
	dir, mark string
	super     *os.Process // signalled by pidfd, so never a stranger with its number
	life      *os.File    // the supervisor sees its end when we die
	inside    bool        // a container
	contained []string    // removes what it leaves; nil = nothing
}

// nodeMark is how the environment entry begins that only processes of this node have:
// the directory tells apart the nodes of clusters that have the same name.
func nodeMark(cfg wire.NodeConfig) string {
	h := sha256.Sum256([]byte(filepath.Clean(cfg.Dir)))
	return fmt.Sprintf("%s=%s/%s/%s/", markVar, cfg.Cluster, cfg.Node, hex.EncodeToString(h[:6]))
}

// newLife ends the entry: it is another one for each guard.
func newLife(cfg wire.NodeConfig) string {
	var r [8]byte
	_, _ = rand.Read(r[:])
	return fmt.Sprintf("%d-%s", cfg.Epoch, hex.EncodeToString(r[:]))
}

// start starts the supervisor. The configuration, which holds secrets, goes over in a
// memory file.
func (g *guard) start(cfg wire.NodeConfig, config []byte) error {
	exe, err := ownBinary()
	if err != nil {
		return err
	}
	conf, err := shm.CreateFile("config")
	if err != nil {
		return err
	}
	defer conf.Close()
	if _, err := conf.Write(config); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the node's configuration in memory")
	}
	if err := shm.Seal(conf, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return err
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "a pipe to the supervisor")
	}
	defer theirs.Close()
	fd, err := openLog(logPath(g.dir))
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the node's log %s", logPath(g.dir))
	}
	log := os.NewFile(uintptr(fd), "log")
	defer log.Close()
	argv, env := []string{exe, "supervise"}, withMark(os.Environ(), g.mark)
	if cfg.Container != "" {
		if argv, env, err = g.contain(cfg, env, argv); err != nil {
			return err
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{conf, theirs} // configFD, guardFD
	if err := cmd.Start(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "starting the supervisor")
	}
	g.super, g.life = cmd.Process, ours
	return nil
}

func withMark(env []string, mark string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, markVar+"=") {
			out = append(out, kv)
		}
	}
	return append(out, mark)
}

// wait waits for the end of the supervisor, hands an order to stop on to it, and cleans
// up behind it.
func (g *guard) wait(ctx context.Context) error {
	defer g.life.Close()
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(sigs)
	ended := make(chan proc.Ended, 1)
	go func() { ended <- g.reap() }()
	var late <-chan time.Time
	done := ctx.Done()
	for {
		select {
		case e := <-ended:
			if _, sig := e.Code(); sig != 0 {
				g.remove() // else its runtime has
			}
			g.clean()
			return g.verdict(e)
		case sig := <-sigs:
			switch sig {
			case unix.SIGHUP: // the terminal or ssh session that began it is over; the node is not
				continue
			case unix.SIGUSR1, unix.SIGUSR2: // it is to be over soon
				_ = g.super.Signal(sig)
				continue
			}
		case <-done:
			done = nil
		case <-late:
			_ = g.super.Kill()
			continue
		}
		_ = g.super.Signal(unix.SIGTERM)
		if late == nil {
			late = time.After(guardGrace)
		}
	}
}

// reap waits for the supervisor, and takes whatever else ends meanwhile.
func (g *guard) reap() proc.Ended {
	for {
		pid, ok := proc.AwaitAny()
		if !ok {
			return proc.Ended{PID: g.super.Pid}
		}
		if e, ok, _ := proc.Reap(pid); ok && pid == g.super.Pid {
			return e
		}
	}
}

// clean kills what the supervisor left, by tree and by mark, and removes the socket.
func (g *guard) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), killBound)
	defer cancel()
	proc.KillBelow(ctx)
	proc.KillMarked(ctx, g.mark)
	proc.KillBelow(ctx) // what was marked may have been a parent
	_ = sockpath.Remove(socketPath(g.dir))
}

func (g *guard) verdict(e proc.Ended) error {
	code, sig := e.Code()
	switch {
	case sig != 0:
		return errs.New(errs.Lost, "the supervisor was killed by signal %d; everything below it was ended", sig).Hint("see %s", logPath(g.dir))
	case g.inside && code >= 125 && code <= 127: // as runtimes say that it is they who failed
		return errs.New(errs.Unavailable, "the container cannot be started: %s", lastLine(logPath(g.dir))).Hint("see %s", logPath(g.dir))
	case code == ExitFatal:
		return errs.New(errs.Unavailable, "the node's agent cannot go on").Hint("see %s", logPath(g.dir))
	case code != ExitDone:
		return errs.New(errs.Internal, "the supervisor ended with status %d", code).Hint("see %s", logPath(g.dir))
	}
	return nil
}
