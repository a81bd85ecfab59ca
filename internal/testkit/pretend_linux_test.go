package testkit

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// from runs a command on the network's laptop.
func from(n *Net, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), Bound)
	defer cancel()
	return Finish(n.Laptop.Program(ctx, args[0], args[1:]...))
}

// TestRootPretendHosts: what a pretend host is, and what can be done to its link.
func TestRootPretendHosts(t *testing.T) {
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
	n := NewNet(t, "numpy")
	jump := n.Host("jump", HostOptions{})
	far := n.Host("far", HostOptions{Behind: jump, Cable: &Cable{Delay: 50 * time.Millisecond}})
	shut := n.Host("shut", HostOptions{Closed: true, Server: ServerOptions{Lines: []string{"AllowTcpForwarding no"}}})
	ssh := func(host, line string, more ...string) Result {
		return from(n, append(append([]string{"ssh", "-F", n.Config, "-o", "BatchMode=yes"}, more...), host, line)...)
	}
	const soon = "-oConnectTimeout=1"
	clone, _ := os.Getwd()
	r := ssh("jump", "hostname; id -un; echo ~; ls -A ~ /tmp /dev/shm | wc -w; python3 -c 'import numpy; print(1)'; ls "+clone)
	if got := strings.Fields(r.Out); len(got) != 5 || got[0] != "jump" || got[1] != n.as.Name || got[2] != "/home/"+n.as.Name || got[4] != "1" || !strings.Contains(r.Err, clone) {
		t.Errorf("on the host: %s", r)
	}
	start := time.Now()
	if r := ssh("far", "hostname"); r.Out != "far\n" || time.Since(start) < 300*time.Millisecond {
		t.Errorf("by way of the jump host, each way a delay of 50 ms: %s", r)
	}
	tcp := func(ip, bound string) string {
		return fmt.Sprintf("timeout %s bash -c 'exec 3<>/dev/tcp/%s/22' && echo reached", bound, ip)
	}
	if r := from(n, "bash", "-c", tcp(far.IP, "0.7")); r.Out != "" {
		t.Errorf("the host behind another is reached by the laptop: %s", r)
	}
	if r := ssh("far", tcp(jump.IP, "30")); r.Out != "reached\n" {
		t.Errorf("hosts do not reach one another: %s", r)
	}
	if r := ssh("shut", tcp(jump.IP, "0.7")+"; "+tcp(n.IP, "0.7")); r.Out != "" || r.Code == 255 {
		t.Errorf("the closed host: %s", r)
	}
	// A link that is down is silent, and what waited goes on when it is up.
	hold := n.Laptop.Program(context.Background(), "ssh", "-F", n.Config, "jump", "echo up; read x; echo $x")
	in, _ := hold.StdinPipe()
	var out Buffer
	hold.Stdout = &out
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, Bound, func() string {
		if out.String() != "up\n" {
			return "the connection is not there"
		}
		return ""
	})
	jump.Down()
	if r := ssh("jump", "true", soon); r.Code != 255 || !strings.Contains(r.Err, "timed out") {
		t.Errorf("a host whose link is down: %s", r)
	}
	_, _ = in.Write([]byte("still\n"))
	jump.Up()
	if err := hold.Wait(); err != nil || out.String() != "up\nstill\n" {
		t.Errorf("after the link was down: %v %q", err, out.String())
	}
	jump.Lose(5)
	jump.Rate("10mbit")
	start = time.Now()
	if r := ssh("jump", "head -c 2000000 /dev/zero | wc -c; head -c 2000000 /dev/zero"); r.Code != 0 || len(r.Out) != 2000008 || time.Since(start) < time.Second {
		t.Errorf("on a slow link that loses packets: %d, %d bytes in %s", r.Code, len(r.Out), time.Since(start))
	}
	// What a host holds, and its end.
	if r := ssh("shut", "touch /tmp/x ~/y; (sleep 987 >/dev/null 2>&1 &)"); r.Code != 0 {
		t.Errorf("%s", r)
	}
	if left := strings.Join(shut.Left(), "|"); left != "/home/"+n.as.Name+"/y|/tmp/x|process sleep 987" {
		t.Errorf("left on the host: %q", left)
	}
	p := shut.Processes()
	shut.PowerOff()
	var pid int
	if _, err := fmt.Sscan(p[0], &pid); err != nil || syscall.Kill(pid, 0) == nil {
		t.Errorf("process %d lives on where the power is off: %v", pid, err)
	}
	if r := ssh("shut", "true", soon); r.Code != 255 {
		t.Errorf("a host without power: %s", r)
	}
}
