package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/agent/core"
	"launcher/wire"
)

// TestSetupFails: the line that failed is named, with how it ended and what it, not
// another, printed last.
func TestSetupFails(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"exit":       {[]string{"true", "exit 3"}, "setup line 2 `exit 3` ended with 3"},
		"status":     {[]string{"echo loud", "echo no module; (exit 4)"}, "setup line 2 `echo no module; (exit 4)` ended with 4: no module"},
		"missing":    {[]string{"nosuchcommand x"}, "setup line 1 `nosuchcommand x` ended with 127"},
		"comment":    {[]string{"false # not swallowed"}, "setup line 1 `false # not swallowed` ended with 1"},
		"syntax":     {[]string{"true", "if true; then"}, "setup line 2 `if true; then` ended with "},
		"trap":       {[]string{"trap - EXIT; set -e", "false"}, "setup line 2 `false` ended with 1"},
		"signal":     {[]string{"kill -9 $$"}, "setup line 1 `kill -9 $$` was ended by signal 9"},
		"late":       {[]string{"echo begun", "sleep 600"}, "setup line 2 `sleep 600` did not end within "},
		"exec":       {[]string{"exec true"}, "setup line 1 `exec true` ended with 0"},
		"background": {[]string{"sleep 60 & echo $! >pid", "echo here; false"}, "setup line 2 `echo here; false` ended with 1: here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bound := setupBound
			if name == "late" {
				bound = time.Second
			}
			dir := t.TempDir()
			lines := append([]string{"cd " + quote(dir)}, c.lines...)
			want := c.want
			for _, k := range []string{"2", "1"} { // the first is ours
				want = strings.Replace(want, "line "+k+" ", "line "+string(k[0]+1)+" ", 1)
			}
			_, err := runSetup(lines, os.Environ(), bound)
			for name == "late" && bound < setupBound && !strings.HasPrefix(fmt.Sprint(err), want) {
				bound *= 4 // a loaded machine may not come to the line in time
				_, err = runSetup(lines, os.Environ(), bound)
			}
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			killPidIn(filepath.Join(dir, "pid"))
		})
	}
}

func killPidIn(path string) {
	if b, err := os.ReadFile(path); err == nil {
		_ = exec.Command("kill", "-9", strings.TrimSpace(string(b))).Run()
	}
}

// TestSetupLeavesProcess: what a line starts in the background is not waited for.
func TestSetupLeavesProcess(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	vars, err := runSetup([]string{"sleep 600 & echo $! >" + pid, "export A=1"}, os.Environ(), setupBound)
	killPidIn(pid)
	if err != nil || !slices.Contains(vars, "A=1") {
		t.Errorf("got %v, %v", vars, err)
	}
}

// TestSetupOutlivesItsFirst: a job that is cancelled while setup runs takes nothing away
// from the next.
func TestSetupOutlivesItsFirst(t *testing.T) {
	e := newEnvironment(testAgent(t))
	e.outer = os.Environ()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := exec.Command("mkfifo", gate).Run(); err != nil {
		t.Fatal(err)
	}
	j := wire.Job{Job: 1, Setup: []string{"read word <" + gate + "; export WORD=$word"}}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := e.of(ctx, &core.Spawn{Job: &j}, nil); first <- err }()
	f, err := os.OpenFile(gate, os.O_WRONLY, 0) // opens when the line runs
	must(t, err)
	cancel()
	if err := <-first; err == nil {
		t.Error("cancelled, and no error")
	}
	_, err = f.WriteString("through\n")
	must(t, err)
	f.Close()
	other := j
	other.Job = 2
	got, err := e.of(t.Context(), &core.Spawn{Job: &other}, nil)
	if err != nil || !slices.Contains(got, "WORD=through") {
		t.Errorf("the next job: %q, %v", got, err)
	}
}

// TestSetupOfSites: what sites have people write there. Functions stay for the commands.
func TestSetupOfSites(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(text), 0o755))
		return p
	}
	base := []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
	has := func(t *testing.T, lines []string, want ...string) []string {
		t.Helper()
		vars, err := runSetup(lines, base, setupBound)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !slices.ContainsFunc(vars, func(kv string) bool { return strings.HasPrefix(kv, w) }) {
				t.Errorf("no %s in %q", w, vars)
			}
		}
		return vars
	}
	t.Run("venv", func(t *testing.T) {
		if out, err := exec.Command("python3", "-m", "venv", "--without-pip", filepath.Join(dir, "venv")).CombinedOutput(); err != nil {
			t.Skipf("SKIP: no venv: %s", out)
		}
		has(t, []string{"source " + dir + "/venv/bin/activate"}, "VIRTUAL_ENV="+dir+"/venv", "PATH="+dir+"/venv/bin:")
	})
	t.Run("conda", func(t *testing.T) {
		// As conda's own: a script that is sourced with a name, and a function.
		write("conda/bin/activate", "export CONDA_DEFAULT_ENV=$1 PATH=\""+dir+"/conda/envs/$1/bin:$PATH\"\n[ -d \""+dir+"/conda/envs/$1\" ] || { echo \"EnvironmentNameNotFound: $1\" >&2; return 1; }\n")
		must(t, os.MkdirAll(filepath.Join(dir, "conda/envs/torch/bin"), 0o755))
		has(t, []string{"PATH=" + dir + "/conda/bin:$PATH", "source activate torch"}, "CONDA_DEFAULT_ENV=torch", "PATH="+dir+"/conda/envs/torch/bin:")
		_, err := runSetup([]string{"source " + dir + "/conda/bin/activate nosuch"}, base, setupBound)
		if err == nil || !strings.Contains(err.Error(), "activate nosuch` ended with 1: EnvironmentNameNotFound: nosuch") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("modules", func(t *testing.T) {
		if _, err := os.Stat("/etc/profile.d/modules.sh"); err != nil {
			t.Skip("SKIP: no environment-modules (make setup as root on Debian)")
		}
		write("modulefiles/cuda/12", "#%Module1.0\nprepend-path PATH /opt/cuda-12/bin\nsetenv CUDA_HOME /opt/cuda-12\n")
		use := "module use " + dir + "/modulefiles"
		vars := has(t, []string{use, "module load cuda/12"}, "CUDA_HOME=/opt/cuda-12", "PATH=/opt/cuda-12/bin:", "BASH_FUNC_module%%=")
		cmd := exec.Command("bash", "-c", "module unload cuda/12; echo ${CUDA_HOME-none}")
		cmd.Env = vars
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "none" {
			t.Errorf("module in a command after setup: %q %v", out, err)
		}
		_, err := runSetup([]string{use, "module load cuda/13"}, base, setupBound)
		if err == nil || !strings.HasPrefix(err.Error(), "setup line 2 `module load cuda/13` ended with 1: ") || !strings.Contains(err.Error(), "Unable to locate a modulefile for 'cuda/13'") {
			t.Errorf("got %v", err)
		}
	})
}
