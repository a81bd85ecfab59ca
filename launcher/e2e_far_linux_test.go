package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// TestRootNetTwoFactors: up asks for the one-time password of a jump host once, however many
// hosts lie behind it.
func TestRootNetTwoFactors(t *testing.T) {
	n := netTest(t)
	if found, _ := filepath.Glob("/lib/*/security/pam_oath.so"); found == nil {
		t.Skip("SKIP: no pam_oath (make setup as root on Debian)")
	}
	secret := []byte("0123456789abcdefghij")
	jump := n.Host("jump", testkit.HostOptions{Server: testkit.ServerOptions{
		Lines: []string{"UsePAM yes", "KbdInteractiveAuthentication yes", "AuthenticationMethods publickey,keyboard-interactive"},
		Inside: []string{fmt.Sprintf("echo 'HOTP %s - %x' >/mnt/users.oath; chmod 600 /mnt/users.oath", n.Laptop.User.Name, secret),
			`printf '%s\n' 'auth required pam_oath.so usersfile=/mnt/users.oath window=20 digits=6' 'account required pam_permit.so' 'session required pam_permit.so' >/mnt/pam`,
			"mount --bind /mnt/pam /etc/pam.d/sshd"},
	}})
	var hosts []*testkit.Host
	for i := range 3 {
		hosts = append(hosts, n.Host(fmt.Sprintf("h%d", i+1), testkit.HostOptions{Behind: jump}))
	}
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2 h3"))
	up := h.StartTTY("up", "boxes.toml")
	asked := 0
	for {
		which := up.Expect("One-time password", "cluster boxes is up: 3 nodes", "error:")
		if which == 1 {
			break
		}
		if asked++; which == 2 || asked > 1 {
			t.Fatalf("asked %d times: %s", asked, up.Out())
		}
		up.Type(testkit.OneTime(secret, 6))
	}
	if asked != 1 {
		t.Errorf("asked %d times: %s", asked, up.Out())
	}
	if r := up.Wait(); r.Code != 0 {
		t.Errorf("up: %s", r)
	}
	if out := h.OK("run", "--nodes", "3", "--", "hostname"); len(strings.Fields(out)) != 3 {
		t.Errorf("a gang behind the jump host: %q", out)
	}
	h.OK("down", "boxes")
	onlyBinary(t, append(hosts, jump)[:3]...)
}

// TestRootNetBad: up, an array and a training on links that lose 5 of 100 packets each way,
// take 50 ms each way and carry 10 Mbit/s.
func TestRootNetBad(t *testing.T) {
	n := netTest(t)
	var hosts []*testkit.Host
	for i := range 2 {
		x := n.Host(fmt.Sprintf("h%d", i+1), testkit.HostOptions{Cable: &testkit.Cable{Delay: 50 * time.Millisecond}})
		x.Lose(5)
		x.Rate("10mbit")
		hosts = append(hosts, x)
	}
	h := n.Laptop
	digits(t, h)
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2"))
	ok := func(bound time.Duration, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		defer cancel()
		r := testkit.Finish(h.Cmd(ctx, args...))
		if r.Code != 0 {
			t.Fatalf("launcher %s: %s", strings.Join(args, " "), r)
		}
		t.Logf("launcher %s: %s", args[0], r.Took.Round(100*time.Millisecond))
		return r.Out
	}
	ok(3*time.Minute, "up", "boxes.toml")
	if out := ok(time.Minute, "run", "--array", "0-49", "--", "sh", "-c", "echo $LAUNCHER_TASK_INDEX"); len(strings.Fields(out)) != 50 {
		t.Errorf("an array of 50: %q", out)
	}
	if out := ok(2*time.Minute, "train", "-n", "2", "--per-node", "1", "train.py", "--steps", "2"); !strings.Contains(out, "steps 2  ranks 2\n") || strings.Contains(out, "going on from step") {
		t.Errorf("the training: %s", out)
	}
	ok(time.Minute, "down", "boxes")
	onlyBinary(t, hosts...)
}
