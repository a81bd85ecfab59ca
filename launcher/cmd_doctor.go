package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"launcher/backends"
	"launcher/backends/slurm"
	"launcher/backends/ssh"
	sshdial "launcher/backends/ssh/dial"
	"launcher/configs"
	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
)

// finding is one line of doctor. Level: ok, note (worth knowing), warning (will hurt),
// error (will not work).
type finding struct {
	Level string `json:"level"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"`
}

type findings []finding

func (f *findings) add(level, fix, format string, args ...any) {
	*f = append(*f, finding{level, fmt.Sprintf(format, args...), fix})
}

func (a *app) cmdDoctor() *cobra.Command {
	var propose, partition string
	var noJob bool
	c := &cobra.Command{
		Use:   "doctor [SPEC]",
		Short: "what would go wrong here, each finding with its fix",
		Long: `Look at this machine, and at SPEC when it is given, for what would go wrong; start nothing.
The hosts of ssh pools are reached, looked at and left as they were: nothing is copied there.
For slurm pools Slurm is asked for its limits, and one node is looked at by a job of a minute, if one is free.
With --propose slurm a spec for the Slurm of this machine is printed, for up.
Exit code 1 when something will not work.`,
		Args: argCount(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			var f findings
			h, err := home()
			if err != nil {
				return err
			}
			if propose != "" {
				return a.propose(c.Context(), propose, partition, h)
			}
			f.stateDir(h)
			f.machine(h)
			f.clusters()
			python := "python3"
			if len(args) == 1 {
				python = f.spec(c.Context(), args[0], h, python, noJob)
			}
			f.python(c.Context(), python)
			bad := 0
			for _, x := range f {
				if x.Level == "error" {
					bad++
				}
			}
			if a.json {
				a.printJSON(doc{"findings": mapAll(f, func(x finding) finding { return x })})
				a.told = true
			} else {
				for _, x := range f {
					fmt.Fprintf(a.out, "%-8s %s\n", x.Level, x.What)
					if x.Fix != "" {
						fmt.Fprintf(a.out, "%-8s fix: %s\n", "", x.Fix)
					}
				}
			}
			if bad > 0 {
				return &exitError{code: 1, side: sideLauncher}
			}
			return nil
		},
	}
	c.Flags().StringVar(&propose, "propose", "", "print a spec that works here: slurm")
	c.Flags().StringVar(&partition, "partition", "", "with --propose: of this partition (default: the site's)")
	c.Flags().BoolVar(&noJob, "no-job", false, "start no job to look at a node of a slurm pool")
	return c
}

// propose prints a spec of what is found.
func (a *app) propose(ctx context.Context, backend, partition, h string) error {
	if backend != slurm.Name {
		return errs.New(errs.Invalid, "--propose %s", backend).Hint("specs are proposed for slurm")
	}
	b := slurm.New(h)
	defer b.Close()
	text, err := b.Propose(ctx, partition)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(doc{"spec": text})
		a.told = true
		return nil
	}
	fmt.Fprint(a.out, text)
	return nil
}

// stateDir looks at $LAUNCHER_HOME.
func (f *findings) stateDir(h string) {
	const fix = "set LAUNCHER_HOME to a directory of yours on a disk with room"
	dir := h
	for { // the nearest directory that is there decides
		st, err := os.Stat(dir)
		if err == nil && !st.IsDir() {
			f.add("error", fix, "the state directory %s cannot be made: %s is a file", h, dir)
			return
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			f.add("error", fix, "the state directory %s cannot be reached: %v", h, err)
			return
		}
		dir = filepath.Dir(dir)
	}
	if t, err := os.CreateTemp(dir, ".launcher-doctor-*"); err != nil {
		f.add("error", fix, "the state directory %s cannot be written: %v", h, errors.Unwrap(err))
		return
	} else {
		_ = t.Close()
		_ = os.Remove(t.Name())
	}
	if free, ok := freeSpace(dir); ok && free < 1<<30 {
		f.add("warning", "free some space, or "+fix, "the state directory %s has %s left; records take up to 2 GiB a cluster", h, wire.Bytes(free))
	}
	if st, err := os.Stat(filepath.Join(h, "clusters")); err == nil && st.Mode().Perm()&0o077 != 0 {
		f.add("error", "chmod 700 "+filepath.Join(h, "clusters"), "other users can enter %s, which holds keys", filepath.Join(h, "clusters"))
	}
	longest := filepath.Join(h, "clusters", strings.Repeat("x", 20), "nodes", strings.Repeat("x", 12), "agent.sock")
	if len(longest) > sockpath.Max {
		f.add("note", "", "%s is deep: sockets go to a short private directory under $XDG_RUNTIME_DIR or /tmp", h)
	}
	f.add("ok", "", "state directory %s", h)
}

// clusters looks for what crashes left.
func (f *findings) clusters() {
	recs, err := records()
	if err != nil {
		f.add("error", "", "%v", err)
		return
	}
	for _, r := range recs {
		t := target{name: r.name, dir: r.dir}
		procs := nodeProcesses(t)
		switch {
		case r.up:
			f.add("ok", "", "cluster %s is up", r.name)
		case len(procs) > 0 || crashed(r.dir):
			f.add("warning", "launcher up its spec to bring it back, or launcher down "+r.name, "cluster %s has crashed: it has no head, and %s", r.name, processesText(len(procs)))
		}
		for _, l := range crashLogs(r.dir) {
			if n, newest := crashesIn(l); n > 0 {
				f.add("warning", "it was started again; report the newest with what "+l+" says before and after it", "a process of cluster %s crashed %d times by a fault of launcher: %s", r.name, n, newest)
			}
		}
		if st, err := os.Stat(filepath.Join(r.dir, "ca.key")); err == nil && st.Mode().Perm()&0o077 != 0 {
			f.add("error", "chmod 600 "+filepath.Join(r.dir, "ca.key"), "other users can read the key of cluster %s", r.name)
		}
	}
}

// spec looks at a cluster spec and gives the Python its first local pool uses.
func (f *findings) spec(ctx context.Context, path, h, python string, noJob bool) string {
	cl, err := configs.LoadCluster(path)
	if err == nil {
		err = checkBackends(cl, h)
	}
	if err != nil {
		for l := range strings.SplitSeq(err.Error(), "\n") {
			f.add("error", strings.Join(errs.HintsOf(err), "; "), "%s", l)
		}
		return python
	}
	f.add("ok", "", "%s: cluster %s, %s", path, cl.Name, plural(len(cl.Pools), "pool"))
	if old, err := readHeadConfig(filepath.Join(h, "clusters", cl.Name)); err == nil && old.SpecPath != cl.Path {
		f.add("error", `give it another name, name = "...", or use up --replace`, "there is a cluster %q already, of %s", cl.Name, old.SpecPath)
	}
	for _, p := range cl.Pools {
		if p.Backend == "local" && p.Python != "" {
			python = p.Python
		}
	}
	f.hosts(ctx, cl, h)
	f.slurm(ctx, cl, h, noJob)
	return python
}

// hosts looks at the machines of ssh pools.
func (f *findings) hosts(ctx context.Context, cl *configs.Cluster, h string) {
	port, _, _ := configs.ParsePorts(cl.Ports)
	if port == 0 {
		port = 20000 // the kernel chooses: any will do to see whether there is a way
	}
	binary, err := executable()
	if err != nil {
		f.add("error", "", "%v", err)
		return
	}
	b := ssh.New(h, sshdial.Options{}) // nothing is asked: what would have to be is a finding
	defer b.Close()
	for _, p := range cl.Pools {
		if p.Backend != ssh.Name {
			continue
		}
		for _, x := range b.Examine(ctx, p.Name, backends.Options(p.Options), p.Hosts, binary, port) {
			f.add(x.Level, x.Fix, "%s", x.What)
		}
	}
}

// slurm looks at the Slurm of slurm pools.
func (f *findings) slurm(ctx context.Context, cl *configs.Cluster, h string, noJob bool) {
	port, _, _ := configs.ParsePorts(cl.Ports)
	b := slurm.New(h)
	defer b.Close()
	for _, p := range cl.Pools {
		if p.Backend != slurm.Name {
			continue
		}
		binary, err := executable()
		if err != nil {
			f.add("error", "", "%v", err)
			return
		}
		for _, x := range b.Examine(ctx, slurm.Patient{Pool: p.Name, Options: backends.Options(p.Options), Max: p.Max, Binary: binary, Port: port, NoJob: noJob}) {
			f.add(x.Level, x.Fix, "%s", x.What)
		}
	}
}

// python looks at the interpreter that Python programs would get.
func (f *findings) python(ctx context.Context, python string) {
	path, err := exec.LookPath(python)
	if err != nil {
		f.add("note", `install Python 3.9 or newer, or name one in the pool: python = "/path/to/python"`, "there is no %s: nodes here run commands, but no Python programs", python)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	const probe = `import sys, importlib.util as u
print("%d.%d.%d" % sys.version_info[:3], *[m for m in ("numpy", "msgpack", "cloudpickle") if u.find_spec(m) is None])
sys.exit(sys.version_info < (3, 9))`
	out, err := exec.CommandContext(ctx, path, "-c", probe).CombinedOutput()
	words := strings.Fields(string(out))
	switch {
	case err != nil && len(words) == 0:
		f.add("warning", "", "%s does not run: %v", path, err)
	case err != nil:
		f.add("warning", "use 3.9 or newer", "%s is Python %s: nodes with it run commands only", path, words[0])
	case len(words) > 1:
		f.add("note", path+" -m pip install "+strings.Join(words[1:], " "), "%s (%s) lacks %s; programs that import them fail", path, words[0], strings.Join(words[1:], ", "))
	default:
		f.add("ok", "", "%s, Python %s with numpy, msgpack and cloudpickle", path, words[0])
	}
}

func processesText(n int) string {
	switch n {
	case 0:
		return "no process is left"
	case 1:
		return "1 process is left"
	}
	return fmt.Sprintf("%d processes are left", n)
}
