package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// taken is what `nodes` says that other people have of a cluster's one node.
func taken(t *testing.T, h *testkit.Home) string {
	t.Helper()
	var x struct {
		Nodes []struct {
			Taken string `json:"taken"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(h.OK("nodes", "--json")), &x); err != nil || len(x.Nodes) != 1 {
		t.Fatalf("%v: %+v", err, x)
	}
	return x.Nodes[0].Taken
}

// TestRootTwoUsers: two users bring clusters of one name up on one box at once, over ssh.
// Neither meets the other, takes its GPUs or cores, reads its files, or ends with it.
func TestRootTwoUsers(t *testing.T) {
	everySSH(t)
	one, two := testkit.PlainUser(t, 1), testkit.PlainUser(t, 2)
	l := testkit.SSHD(t)
	// A machine of its own, as far as declared GPUs go: other tests have some of this one.
	id := filepath.Join(l.Dir, "machine-id")
	if err := os.WriteFile(id, fmt.Appendf(nil, "%s\n", filepath.Base(l.Dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	box := []string{"mount --bind " + id + " /etc/machine-id"}
	a := l.Start("a", testkit.ServerOptions{As: one, Inside: box})
	b := l.Start("b", testkit.ServerOptions{As: two, Inside: box, IP: a.IP, Port: a.Port + 1})
	x, y := testkit.New(t), testkit.New(t)
	t.Cleanup(func() { x.Run("down", "boxes"); y.Run("down", "boxes") })
	spec := func(s *testkit.Server, user, resources string) string {
		text := strings.Replace(sshSpec(l, fmt.Sprintf("%q", user+"@"+hostPort(s)), ""), "resources = { cpu = 2, slot = 2 }", "resources = { "+resources+" }", 1)
		return strings.Replace(text, "[[pool]]", "[network]\nports = \"23400-23440\"\n[[pool]]", 1)
	}
	x.Write("boxes.toml", spec(a, one.Name, "gpu = 2, slot = 8"))
	y.Write("boxes.toml", spec(b, two.Name, "cpu = 8, gpu = 2"))
	ups := []*testkit.Running{x.Start("up", "boxes.toml"), y.Start("up", "boxes.toml")}
	for _, r := range ups {
		if got := r.Wait(); got.Code != 0 || !strings.Contains(got.Out, "1 node") {
			t.Fatalf("up: %s", got)
		}
	}
	for h, u := range map[*testkit.Home]*testkit.User{x: one, y: two} {
		if out := h.OK("run", "--cpus", "0", "--", "id", "-un"); out != u.Name+"\n" {
			t.Errorf("the node of %s runs as %q", u.Name, out)
		}
	}

	// GPUs: the first takes one, the second gets the other, and cannot have both.
	x.OK("run", "--detach", "--cpus", "0", "--gpus", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 300")
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := x.OK("logs", "2"); out != "0\n" {
			return "the first user's job has not printed its GPU: " + out + x.Run("why", "2").Out
		}
		return ""
	})
	if out := y.OK("run", "--gpus", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"); out != "1\n" {
		t.Errorf("the second user has GPU %q beside the first's 0", out)
	}
	y.OK("run", "--detach", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
	const held = "gpu 0: held by another user's process "
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := y.Run("why", "3").Out; !strings.Contains(out, held) || !strings.Contains(out, "("+one.Name+")") {
			return out
		}
		return ""
	})
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := y.OK("status"); !strings.Contains(out, held) {
			return "status does not say who has the GPU: " + out
		}
		return ""
	})
	x.OK("cancel", "2")
	y.OK("wait", "3")
	if out := y.OK("logs", "3"); out != "0,1\n" {
		t.Errorf("both GPUs, when they are free: %q", out)
	}

	// Cores: what the second user keeps busy is not offered by the first's node.
	y.OK("run", "--detach", "--cpus", "4", "--name", "busy", "--", "sh", "-c", "for i in 1 2 3 4; do (while :; do :; done) & done; wait")
	testkit.Eventually(t, testkit.Bound, func() string {
		if who := taken(t, x); !strings.Contains(who, "other users keep ") {
			return fmt.Sprintf("the first user's node says %q", who)
		}
		return ""
	})
	if who := taken(t, y); strings.Contains(who, "other users keep") {
		t.Errorf("a node whose pool says how many cores there are counts others: %q", who)
	}
	if out := x.OK("run", "--", "echo", "still"); out != "still\n" {
		t.Errorf("one core is always offered: %q", out)
	}

	// Files, sockets, memory: all that either has is closed to the other.
	for u, home := range map[*testkit.User]string{one: a.Home, two: b.Home} {
		for _, root := range []string{home, "/tmp", "/var/tmp", "/dev/shm", "/run"} {
			open(t, root, u)
		}
	}
	sock := ""
	_ = filepath.WalkDir(a.Home, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), "agent.sock") {
			sock = p
		}
		return nil
	})
	if sock == "" {
		t.Fatal("the first user's agent has no socket")
	}
	out := y.Run("run", "--cpus", "0", "--", "sh", "-c", fmt.Sprintf("ls %s; LAUNCHER_SOCKET=%s $LAUNCHER jobs; ls -d %s/.launcher/*; true", sock, sock, a.Home))
	if strings.Count(out.Err+out.Out, "ermission denied") < 3 {
		t.Errorf("the second user at the first's socket: %s", out)
	}
	if out := y.OK("run", "--cpus", "0", "--", "sh", "-c", "$LAUNCHER jobs --all --json | tr , '\\n' | grep -c '\"command\"'; ls -d ~/.launcher/hosts/*/* | wc -l"); !strings.HasSuffix(out, "\n1\n") {
		t.Errorf("what a program of the second user finds: %q", out)
	}

	// The end of one is not that of the other.
	x.OK("down", "boxes")
	if left := leftOn(t, a); len(left) != 1 {
		t.Errorf("left by the first user: %q", left)
	}
	if out := y.OK("run", "--cpus", "0", "--", "echo", "here"); out != "here\n" {
		t.Errorf("the second user's cluster after the first's end: %q", out)
	}
	y.OK("down", "boxes")
	if left := leftOn(t, b); len(left) != 1 {
		t.Errorf("left by the second user: %q", left)
	}
}

// open complains about everything of launcher's and a user's directly in a directory that
// others may enter or read. What other tests have there is not looked at.
func open(t *testing.T, dir string, u *testkit.User) {
	t.Helper()
	for _, pattern := range []string{"launcher*", ".launcher*"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range found {
			info, err := os.Lstat(p)
			if err != nil || strings.HasPrefix(filepath.Base(p), "launcher-testkit") {
				continue
			}
			if st := info.Sys().(*syscall.Stat_t); int(st.Uid) == u.UID && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s of %s has mode %o", p, u.Name, info.Mode().Perm())
			}
		}
	}
}

// smiOf answers as nvidia-smi of a machine with three GPUs does, with processes on them.
const smiOf = `#!/bin/sh
case "$*" in
--query-gpu=index,uuid,name,memory.total,mig.mode.current,pci.bus_id\ *)
	for i in 0 1 2; do echo "$i, GPU-00000000-0000-4000-9000-%[1]s$i, NVIDIA A100-SXM4-40GB, 40960, Disabled, 00000000:0$i:00.0"; done ;;
--query-compute-apps=gpu_uuid,pid\ *) echo "GPU-00000000-0000-4000-9000-%[1]s2, 1" ;;
*) exit 2 ;;
esac
`

// TestSSHForeign: a GPU on which another user computes is not given away, and who it is is
// told; with share = "ignore" it is.
func TestSSHForeign(t *testing.T) {
	everySSH(t)
	l := testkit.SSHD(t)
	bin := filepath.Join(l.Dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "nvidia-smi"), fmt.Appendf(nil, smiOf, fmt.Sprintf("%011d", os.Getpid())), 0o755); err != nil {
		t.Fatal(err)
	}
	a := l.Start("a", testkit.ServerOptions{Env: []string{"PATH=" + bin + ":/usr/bin:/bin"}})
	h := testkit.New(t)
	t.Cleanup(func() { h.Run("down", "boxes") })
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q", hostPort(a)), ""))
	h.OK("up", "boxes.toml")
	const held = "gpu 2: held by another user's process 1 (root)"
	if who := taken(t, h); os.Getuid() != 0 && who != held {
		t.Errorf("nodes says %q", who)
	}
	h.OK("run", "--detach", "--gpus", "3", "--", "echo", "got")
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.Run("why", "1").Out; !strings.Contains(out, held) {
			return out
		}
		return ""
	})
	if out := h.OK("run", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES | tr , '\\n' | wc -l"); out != "2\n" {
		t.Errorf("two of the three: %q", out)
	}
	h.OK("cancel", "1")
	h.OK("down", "boxes")
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q", hostPort(a)), `share = "ignore"`))
	h.OK("up", "boxes.toml")
	if out := h.OK("run", "--gpus", "3", "--", "echo", "got"); out != "got\n" {
		t.Errorf("all three with share = ignore: %q", out)
	}
	h.OK("down", "boxes")
}
