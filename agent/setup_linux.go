package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// setupBound is how long a pool's setup lines may take; modules on a busy file system
// are slow.
const setupBound = 5 * time.Minute

// setupOutcome is the environment after a pool's setup lines, run once per node.
type setupOutcome struct {
	done chan struct{} // closed when the rest is there
	vars []string
	err  error
}

// setup runs the pool's setup lines in a login shell, once, and gives the environment
// that they leave. Whoever asked first may lose interest: others wait for the same run.
func (e *environment) setup(ctx context.Context, spec *wire.Job, base []string) ([]string, error) {
	key := strings.Join(append(append([]string{}, spec.Setup...), spec.PoolEnv...), "\n")
	key += "\x00" + strings.Join(spec.Spec.Keep, " ")
	e.mu.Lock()
	s := e.setups[key]
	if s == nil {
		s = &setupOutcome{done: make(chan struct{})}
		e.setups[key] = s
		env := append(base[:len(base):len(base)], spec.PoolEnv...)
		go func() { // ends within setupBound
			defer close(s.done)
			if s.vars, s.err = runSetup(spec.Setup, env, setupBound); s.err != nil {
				s.err = errs.Wrap(errs.Unknown, s.err, "node %s", e.a.cfg.Node)
				e.mu.Lock()
				delete(e.setups, key) // it may be put right
				e.mu.Unlock()
			}
		}()
	}
	e.mu.Unlock()
	select {
	case <-s.done:
		return s.vars, s.err
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "node %s: waiting for the pool's setup", e.a.cfg.Node)
	}
}

// setupScript runs the lines in one shell. Marks come by a descriptor of its own, then
// the environment; a zero byte in the output parts what one line printed from the next.
// The lines themselves do not have these descriptors: what they leave in the background
// holds nothing of ours.
func setupScript(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		fmt.Fprintf(&b, "printf '%d ' >&3; printf '\\000' >&4\neval %s 3>&- 4>&- || exit $?\n", i+1, quote(l))
	}
	b.WriteString("printf '= ' >&3\nenv -0 >&3 || /usr/bin/env -0 >&3\n")
	return b.String()
}

// runSetup gives the environment after the lines, or says which of them failed and how.
func runSetup(lines, env []string, bound time.Duration) ([]string, error) {
	shell := "bash"
	if _, err := exec.LookPath(shell); err != nil {
		shell = "sh"
	}
	// Files in memory, no pipes: nobody waits for what a line left in the background.
	marks, err := shm.CreateFile("setup")
	if err != nil {
		return nil, err
	}
	defer marks.Close()
	out, err := shm.CreateFile("setup-output")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(shell, "-l", "-c", setupScript(lines))
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = env, out, out, []*os.File{marks, out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "running setup")
	}
	var late bool
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t := time.NewTimer(bound)
	defer t.Stop()
	select {
	case err = <-ended:
	case <-t.C:
		late = true
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		err = <-ended
	}
	said, vars, whole := strings.Cut(contents(marks), "= ")
	if whole && err == nil {
		return setupVars(vars), nil
	}
	what := "setup"
	if n := strings.Count(said, " "); n > 0 && n <= len(lines) {
		what = fmt.Sprintf("setup line %d `%s`", n, lines[n-1])
	}
	text := contents(out)
	text = lastLines(text[strings.LastIndexByte(text, 0)+1:])
	if text != "" {
		text = ": " + strings.ToValidUTF8(text, "?")
	}
	how := fmt.Sprintf("ended with %d", cmd.ProcessState.ExitCode())
	switch st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case late:
		how = fmt.Sprintf("did not end within %s", bound)
	case ok && st.Signaled():
		how = fmt.Sprintf("was ended by signal %d", int(st.Signal()))
	}
	return nil, errs.New(errs.Invalid, "%s %s%s", what, how, text).Hint("try the lines of setup in a login shell (bash -l) on that node")
}

// maxSetupFile bounds what is read of what the lines printed or left.
const maxSetupFile = 16 << 20

func contents(f *os.File) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	size := min(st.Size(), maxSetupFile)
	b := make([]byte, size)
	n, _ := f.ReadAt(b, st.Size()-size)
	return string(bytes.TrimRight(b[:n], "\x00"))
}

// setupVars reads the environment as env prints it, without what is the shell's own.
func setupVars(list string) (vars []string) {
	for kv := range strings.SplitSeq(list, "\x00") {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "_" && name != "SHLVL" && name != "PWD" && name != "OLDPWD" {
			vars = append(vars, kv)
		}
	}
	return vars
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// lastLines is the end of what a program printed, on one line.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
