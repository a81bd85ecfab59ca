package slurm

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

//go:embed look.sh
var lookScript string

const (
	// visitWait is how long the job that looks at a node may wait for one by default.
	visitWait = 20 * time.Second
	maxSkew   = 10 * time.Second
	leastShm  = 64 << 20
	leastFile = 4096
)

// options are those of a job for n nodes of a pool, as words for sbatch and srun.
func (q request) options(n int) []string {
	out := []string{"-N", strconv.Itoa(n), "-n", strconv.Itoa(n)}
	opt := func(key, value string) {
		if value != "" && value != "0" {
			out = append(out, "--"+key+"="+value)
		}
	}
	opt("partition", q.Partition)
	opt("account", q.Account)
	opt("qos", q.QOS)
	opt("constraint", q.Constraint)
	opt("reservation", q.Reservation)
	opt("cpus-per-task", strconv.Itoa(q.CPUs))
	if q.Memory > 0 {
		opt("mem", strconv.FormatInt((q.Memory+1<<20-1)>>20, 10)+"M")
	}
	opt("gres", q.Gres)
	opt("gpus-per-node", strconv.Itoa(q.GPUs))
	if q.Exclusive {
		out = append(out, "--exclusive")
	}
	return out
}

// testOnly asks Slurm whether it would take a job of the pool, and when it would start.
func (b *Backend) testOnly(ctx context.Context, x *examination) bool {
	args := append(x.q.options(1), "--test-only")
	if x.q.Time > 0 {
		args = append(args, "--time="+maxTime(x.q.Time))
	}
	if x.q.TimeMin > 0 && x.q.TimeMin < x.q.Time {
		args = append(args, "--time-min="+maxTime(x.q.TimeMin))
	}
	env := append(environment(environ(), &x.q), "LC_ALL=C")
	_, said, err := b.cli.both(ctx, env, "#!/bin/sh\n", "sbatch", append(args, x.q.Args...)...)
	if err != nil {
		x.fail(err)
		return false
	}
	_, at, _ := strings.Cut(said, " to start at ")
	at, _, _ = strings.Cut(at, " ")
	t := stamp(at)
	switch wait := time.Until(time.Unix(t, 0)); {
	case t == 0:
		x.tell("ok", "", "Slurm would take a job of one node")
	case wait <= time.Minute:
		x.tell("ok", "", "Slurm would start a job of one node at once")
	default:
		x.tell("note", "", "Slurm would start a job of one node at %s", time.Unix(t, 0).Format("2006-01-02 15:04"))
	}
	return true
}

// door listens where the head would, to see whether a node can reach it.
type door struct {
	l     net.Listener
	token string
	mu    sync.Mutex
	came  bool // guarded by mu
	wg    sync.WaitGroup
}

func openDoor(port int, token string) (*door, error) {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	d := &door{l: l, token: token}
	d.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				buf := make([]byte, len(token))
				n, _ := c.Read(buf)
				d.mu.Lock()
				d.came = d.came || string(buf[:n]) == token
				d.mu.Unlock()
			})
		}
	})
	return d, nil
}

func (d *door) close() bool {
	_ = d.l.Close()
	d.wg.Wait()
	return d.came
}

// ownAddresses are those that the head would name.
func ownAddresses() (out []string) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			out = append(out, n.IP.String())
		}
	}
	return append(out, "127.0.0.1")
}

// visit looks at a node by a job of one minute.
func (b *Backend) visit(ctx context.Context, x *examination) {
	var r [12]byte
	_, _ = rand.Read(r[:]) // never fails
	token := hex.EncodeToString(r[:])
	home, err := filepath.Abs(b.home)
	if err == nil {
		err = os.MkdirAll(home, 0o700)
	}
	if err != nil {
		x.fail(errs.Wrap(errs.Permission, err, "the state directory"))
		return
	}
	file := filepath.Join(home, ".doctor-"+token)
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		x.fail(diskError(err, file))
		return
	}
	defer os.Remove(file)
	d, err := openDoor(x.Port, token)
	if err != nil {
		x.tell("error", "another range of [network] ports", "port %d cannot be listened on here: %v", x.Port, err)
		return
	}
	_, port, _ := net.SplitHostPort(d.l.Addr().String())
	var head strings.Builder
	for _, kv := range [][2]string{{"token_file", file}, {"token", token}, {"binary", x.Binary}, {"addresses", strings.Join(ownAddresses(), " ")}, {"port", port}} {
		fmt.Fprintf(&head, "%s=%s\n", kv[0], quote(kv[1]))
	}
	args := append(x.q.options(1), "--job-name=launcher-doctor", "--immediate="+strconv.Itoa(int(x.Wait/time.Second)), "--time=1", "--export=ALL", "--input=0")
	for _, a := range x.q.Args { // mail and output are of no use here
		if !strings.HasPrefix(a, "--mail") && !strings.HasPrefix(a, "--output") && !strings.HasPrefix(a, "--error") {
			args = append(args, a)
		}
	}
	before := time.Now()
	out, said, err := b.cli.both(ctx, environment(environ(), &x.q), head.String()+lookScript, "srun", append(args, "sh", "-s")...)
	after := time.Now()
	came := d.close()
	seen := map[string][]string{}
	for line := range strings.Lines(out) {
		if f := strings.SplitN(strings.TrimSpace(line), " ", 3); len(f) >= 2 && f[0] == "look" {
			seen[f[1]] = append(seen[f[1]], strings.Join(f[2:], " "))
		}
	}
	if len(seen["end"]) == 0 {
		if strings.Contains(said, "mmediate") || strings.Contains(said, "busy") || strings.Contains(said, "queued and waiting") {
			x.tell("note", "run doctor again when nodes are free", "no node was free within %s to be looked at", x.Wait)
			return
		}
		if err == nil {
			err = errs.New(errs.Unknown, "the job that looks at a node ended early: %s", complaint(said))
		}
		x.fail(err)
		return
	}
	x.node(seen, before, after, came)
}

// node tells what was seen on a node.
func (x *examination) node(seen map[string][]string, before, after time.Time, came bool) {
	one := func(k string) string {
		if v := seen[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	num := func(k string) int64 { n, _ := strconv.ParseInt(one(k), 10, 64); return n }
	host := one("host")
	tell := func(level, fix, format string, args ...any) {
		x.tell(level, fix, "node "+host+": "+format, args...)
	}
	now := time.Unix(num("now"), 0)
	if early := before.Truncate(time.Second).Sub(now); early > maxSkew {
		tell("warning", "chrony or ntpd on the nodes", "its clock is %s behind this machine's", early.Round(time.Second))
	} else if late := now.Sub(after); late > maxSkew {
		tell("warning", "chrony or ntpd on the nodes", "its clock is %s before this machine's", late.Round(time.Second))
	}
	cores, granted := countCores(one("cores")), int(num("granted"))
	if granted > 0 && cores > granted {
		tell("note", "", "the site confines nobody to the cores that were granted (%d of %d): agents keep to them by themselves", granted, cores)
	} else if granted > 0 && cores < granted {
		tell("warning", "ask the site about TaskPlugin", "%d cores were granted and a step may use %d", granted, cores)
	}
	if x.q.CPUs == 0 && granted == 1 {
		tell("note", "cpus = N, of each node", "no cores are asked for, and a job gets one")
	}
	limit := int64(0)
	for _, v := range seen["memory"] {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && n < num("total")<<10 && (limit == 0 || n < limit) {
			limit = n
		}
	}
	room := "memory is not confined"
	if limit > 0 {
		room = "memory is confined to " + wire.Bytes(limit)
	}
	if free := num("shm") << 10; free < leastShm {
		tell("warning", "ask the site to mount more", "/dev/shm has %s left", wire.Bytes(free))
	}
	if n := one("files"); n != "unlimited" && num("files") < leastFile {
		tell("warning", "PropagateResourceLimits or nofile on the nodes", "at most %s open files", n)
	}
	x.gpus(tell, one("visible"), seen["smi"])
	if one("python") == "" {
		tell("note", `python = "/path/to/python" or setup = ["module load python"]`, "no python3 is found before setup: nodes run commands only")
	}
	if one("home") == "" && !x.q.Apart {
		tell("error", "shared_home = false; or set LAUNCHER_HOME to a directory that nodes share with this machine", "the state directory is not seen there")
	}
	if one("binary") == "" && !x.q.Apart {
		tell("error", "shared_home = false; or put the binary into a directory that nodes share with this machine", "it does not see %s", x.Binary)
	}
	if !came {
		level, but := "warning", "; nodes are then reached from here, where that is permitted"
		if x.q.Apart { // they have no way to say where they are
			level, but = "error", ""
		}
		ports := "open a port between them and name it, [network] ports"
		if r := x.s.srunPorts(); r != "" {
			ports = fmt.Sprintf("[network] ports = %q, which srun uses here (SrunPortRange)", r)
		}
		tell(level, ports+"; or start the work inside an allocation, by sbatch",
			"it cannot reach this machine by TCP (%s), where the head would be%s", strings.Join(ownAddresses(), ", "), but)
	}
	tell("ok", "", "%s, /dev/shm %s, python %s, reaches this machine at %s", room, wire.Bytes(num("shm")<<10), one("python"), one("way"))
}

// gpus compares what was granted with what is seen.
func (x *examination) gpus(tell func(level, fix, format string, args ...any), visible string, smi []string) {
	asked := x.q.GPUs
	if asked == 0 {
		_, asked = gpusOf(x.q.Gres)
	}
	if asked == 0 {
		return
	}
	granted := 0
	if visible != "none" && visible != "" && visible != "NoDevFiles" {
		granted = strings.Count(visible, ",") + 1
	}
	switch {
	case granted < asked:
		tell("error", "ask the site: gres.conf must name the device files", "%s asked for, and CUDA_VISIBLE_DEVICES=%s", plural(asked, "GPU"), visible)
	case len(smi) == 0:
		tell("warning", `see that nvidia-smi is on PATH there, or say resources = { gpu = N }`, "%s granted, and there is no nvidia-smi to say what they are", plural(granted, "GPU"))
	case number(smi[0]) == granted:
		tell("ok", "", "GPUs are confined to the %d that were granted", granted)
	case number(smi[0]) > granted:
		tell("note", "", "GPUs are not confined: %s are seen, %d were granted; agents keep to CUDA_VISIBLE_DEVICES=%s", smi[0], granted, visible)
	default:
		tell("error", "see that nvidia-smi works there", "%s granted, and nvidia-smi shows %s", plural(granted, "GPU"), smi[0])
	}
}
