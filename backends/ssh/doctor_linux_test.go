package ssh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/backends"
	"launcher/internal/testkit"
)

// TestExamine: a host that is well, and others that are not, each finding with its fix.
func TestExamine(t *testing.T) {
	l := testkit.SSHD(t)
	tools := filepath.Join(l.Dir, "tools")
	sick := func(name, text string) {
		if err := os.MkdirAll(tools, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sick("df", `echo head; echo /dev/x 100 90 10 90% /`)
	sick("date", `echo 1000000000`)
	sick("nvidia-smi", `echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9`)
	sick("python3", `echo 3.6; exit 1`)
	sick("timeout", `shift; case $1 in bash) exit 124 ;; esac; exec "$@"`)
	well := l.Start("well", testkit.ServerOptions{Client: []string{"StrictHostKeyChecking yes"}})
	bad := l.Start("bad", testkit.ServerOptions{Lines: []string{
		`ForceCommand echo "Have a nice day"; ulimit -n 64; ulimit -u 4000; ulimit -f 4096; PATH=` + tools + `:$PATH; export PATH; eval "$SSH_ORIGINAL_COMMAND"`}})
	l.Start("new", testkit.ServerOptions{Unknown: true})
	changed := l.Start("changed", testkit.ServerOptions{Unknown: true})
	l.Know(changed.Addr(), testkit.WriteKey(t, filepath.Join(l.Dir, "other"), testkit.NewKey(t, "ed25519")).PublicKey())
	l.Start("denied", testkit.ServerOptions{Lines: []string{"AuthorizedKeysFile none"}})
	l.Start("mute", testkit.ServerOptions{Lines: []string{"ForceCommand echo go away"}})
	b := newBackend(t.TempDir(), sshDialer(t))
	defer b.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	found := b.Examine(t.Context(), "boxes", backends.Options{"ssh_config": l.Config, "directory": "~/x"}, []string{"well", "bad", "new", "changed", "denied", "mute", "127.9.9.9:1", "no-such-host.invalid"}, exe, 20000)
	var text strings.Builder
	for _, f := range found {
		fmt.Fprintf(&text, "%s %s | %s\n", f.Level, f.What, f.Fix)
		if f.Fix == "" && (f.Level == "error" || f.Level == "warning") {
			t.Errorf("no fix for %q", f.What)
		}
	}
	for _, want := range [][]string{
		{"ok well: ", "left in " + filepath.Join(well.Home, "x"), "/dev/shm"},
		{"note bad: its login prints to programs", "Have a nice day", "[ -t 1 ]"},
		{"warning bad: its clock is -", "chrony"},
		{"warning bad: /dev/shm has ", "remount"},
		{"warning bad: at most 64 open files", "nofile"},
		{"warning bad: at most 4000 processes", "nproc"},
		{"note bad: its python3 is 3.6", "install python3"},
		{"error ", "changed", l.KnownHosts + ":", "ssh-keygen -R"},
		{"error ", "denied", "publickey"},
		{"warning bad: files may have at most", "fsize"},
		{"warning bad: its GPUs cannot be used: nvidia-smi: NVIDIA-SMI has failed", "nvidia-smi works"},
		{"error bad: no directory there will do", filepath.Join(bad.Home, "x"), "MiB are needed"},
		{"warning bad: no way from it to well (" + well.IP + " port 20000): nothing answers", "[network]"},
		{"error ", "new", "in no known_hosts", "--accept-new-host-keys"},
		{"error mute: its login shell runs no commands", "go away"},
		{"error ", "127.9.9.9", "nothing listens"},
		{"error ", "no-such-host.invalid"},
	} {
		ok := false
		for line := range strings.Lines(text.String()) {
			has := strings.HasPrefix(line, want[0])
			for _, w := range want {
				has = has && strings.Contains(line, w)
			}
			ok = ok || has
		}
		if !ok {
			t.Errorf("nothing says %q", want)
		}
	}
	if strings.Contains(text.String(), "warning well") || strings.Contains(text.String(), "error well") {
		t.Error("the host that is well has faults")
	}
	if t.Failed() {
		t.Log(text.String())
	}
	for _, s := range []*testkit.Server{well, bad} {
		if _, err := os.Stat(filepath.Join(s.Home, "x")); err == nil {
			t.Errorf("something is left on %s", s.Name)
		}
	}
}
