package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/agent/spool"
	"launcher/agent/supervisor"
	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/logx"
	"launcher/internal/sockpath"
	"launcher/wire"
)

func TestMain(m *testing.M) {
	supervisortest.Main(supervisortest.Roles{"agent": standIn, "head": headStandIn, "counter": counter})
	os.Exit(m.Run())
}

// counter prints 1, 2, 3, ... until a file is there, then "end" and exits with a status.
// It says first who it is.
func counter() int {
	stop, code := os.Args[2], os.Args[3]
	deaf := os.Getenv("DEAF") != "" // goes on when nobody reads
	if deaf {
		signal.Ignore(syscall.SIGPIPE)
	}
	w := bufio.NewWriter(os.Stdout)
	fmt.Fprintf(w, "pid %d\n", os.Getpid())
	for n := 1; ; n++ {
		fmt.Fprintln(w, n)
		if w.Flush() != nil && !deaf {
			return 99
		}
		if _, err := os.Stat(stop); err == nil {
			break
		}
		time.Sleep(time.Millisecond) // sleep: it counts slowly
	}
	fmt.Fprintln(w, "end")
	w.Flush()
	n, _ := strconv.Atoi(code)
	return n
}

// shapes are the four ways in which a user's work can hang below its first process.
func shapes(exe, stop string) [][]string {
	count := func(code int) string { return fmt.Sprintf("%s counter %s %d", exe, stop, code) }
	return [][]string{
		{exe, "counter", stop, "11"},
		{"sh", "-c", count(12) + " & wait $!"},
		{"sh", "-c", "setsid " + count(13) + " & wait $!"},
		{"python3", "-c", "import subprocess, sys; sys.exit(subprocess.Popen(sys.argv[1:]).wait())", exe, "counter", stop, "14"},
	}
}

// standIn is an agent that does what an agent must so that its death loses nothing: it
// starts the four shapes, spools their output, notes their ends, and says farewell.
func standIn() int {
	ctx := context.Background()
	c, err := supervisor.Connect(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg, err := c.Config()
	if err != nil {
		return 1
	}
	note := func(name, text string) {
		f, err := os.OpenFile(filepath.Join(cfg.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err == nil {
			f.WriteString(text + "\n")
			f.Close()
		}
	}
	drained := make(chan wire.Proc, 16)
	s, err := spool.Open(spool.Config{Dir: filepath.Join(cfg.Dir, "spool"), Log: logx.New(os.Stderr, 0), Notify: func(e spool.Event) {
		if e.Kind == spool.Drained {
			drained <- e.Proc
		}
	}})
	if err != nil {
		return 1
	}
	if _, err := s.AddStored(c.FDs()); err != nil {
		return 1
	}
	exe, _ := os.Executable()
	all := shapes(exe, filepath.Join(cfg.Dir, "stop"))
	if c.Restarts() == 0 {
		if l, err := sockpath.Listen(filepath.Join(cfg.Dir, "agent.sock")); err == nil {
			defer l.Close()
		}
		for i, argv := range all {
			r, w, err := spool.Pipe()
			if err != nil {
				return 1
			}
			// HOME is all that Python needs to be found by its shims.
			env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "DEAF=" + cfg.Labels["deaf"]}
			_, err = c.Spawn(ctx, supervisor.Order{Proc: name(i), Argv: argv, Env: env, Dir: "/", Files: []*os.File{nil, w, w},
				Keep: map[string]*os.File{spool.FDName(name(i), 1): r}})
			w.Close()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			s.Add(name(i), r, nil)
		}
	}
	note("lives", fmt.Sprintf("%d %d %d", os.Getpid(), os.Getppid(), c.Restarts()))
	in := map[wire.Proc]bool{}
	for ended, open := 0, len(all); open > 0 || ended < len(all); {
		select {
		case x := <-c.Exits():
			ended++
			note("exits", fmt.Sprintf("%d %d", x.Proc.Index, x.Code))
			s.Exited(x.Proc)
		case p := <-drained:
			if !in[p] {
				in[p] = true
				open--
			}
		case <-c.Done():
			return 1
		}
	}
	if err := c.Farewell(ctx, "all is done"); err != nil {
		return 1
	}
	return 0
}

// lives gives the pids of agent and supervisor and the restarts, as the newest agent
// noted them, once there is a life after the first `after`.
func lives(t *testing.T, dir string, after int) (agent, super, restarts int) {
	t.Helper()
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) { // sleep: bounded poll
		b, _ := os.ReadFile(filepath.Join(dir, "lives"))
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if len(b) > 0 && strings.HasSuffix(string(b), "\n") && len(lines) > after {
			fmt.Sscan(lines[len(lines)-1], &agent, &super, &restarts)
			return agent, super, restarts
		}
	}
	t.Fatalf("no agent number %d came up", after+1)
	panic("unreachable")
}
