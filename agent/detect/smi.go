package detect

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"launcher/internal/errs"
)

// smiBound is for one call: a driver that has lost a GPU lets nvidia-smi hang.
const smiBound = 30 * time.Second

// smi gives the source that asks nvidia-smi, as env's PATH finds it.
func smi(root string, env []string) source {
	return func(ctx context.Context) ([]device, error) {
		path, err := lookIn(env, "nvidia-smi")
		if err != nil {
			if _, err := os.Stat(filepath.Join(root, "/proc/driver/nvidia/version")); err == nil {
				return nil, errs.New(errs.NotFound, "the NVIDIA driver is loaded but there is no nvidia-smi in PATH").
					Hint("add its directory to PATH, or say resources = { gpu = N } in the pool")
			}
			return nil, nil
		}
		return askSMI(ctx, func(ctx context.Context, args ...string) (string, error) { return callSMI(ctx, path, env, args...) })
	}
}

// askSMI puts what three calls say together.
func askSMI(ctx context.Context, call func(ctx context.Context, args ...string) (string, error)) ([]device, error) {
	out, err := call(ctx, "--query-gpu=index,uuid,name,memory.total,mig.mode.current,pci.bus_id", "--format=csv,noheader,nounits")
	if err != nil {
		return nil, err
	}
	ds, mig, err := parseQuery(out)
	if err != nil || len(ds) == 0 {
		return nil, err
	}
	for _, on := range mig {
		if on {
			if out, err = call(ctx, "-L"); err != nil {
				return nil, err
			}
			ds = parseList(out, ds, mig)
			break
		}
	}
	if out, err = call(ctx, "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"); err != nil {
		return nil, err
	}
	parseApps(out, ds)
	return ds, nil
}

func callSMI(ctx context.Context, path string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, smiBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	text := strings.TrimSpace(string(out))
	if err == nil {
		return text, nil
	}
	if text == "No devices were found" {
		return "", nil
	}
	if x, ok := err.(*exec.ExitError); ok && text == "" {
		text = strings.TrimSpace(string(x.Stderr))
	}
	return "", smiError(text, err)
}

// smiError says what a failure of nvidia-smi means.
func smiError(text string, cause error) error {
	first, _, _ := strings.Cut(text, "\n")
	e := errs.New(errs.Unavailable, "nvidia-smi: %s", first)
	switch {
	case first == "":
		e = errs.Wrap(errs.Unavailable, cause, "nvidia-smi does not answer")
		e.Hint("does it hang in a shell too? a GPU may have fallen off the bus: see dmesg")
	case strings.Contains(text, "Driver/library version mismatch"):
		e.Hint("the driver was updated without a restart: reload the nvidia kernel modules or restart the machine")
	case strings.Contains(text, "couldn't communicate with the NVIDIA driver"), strings.Contains(text, "Driver Not Loaded"):
		e.Hint("the nvidia kernel module is not loaded: modprobe nvidia, or the machine has no GPU")
	case strings.Contains(text, "Insufficient Permissions"), strings.Contains(text, "Unknown Error"):
		e.Hint("this container or allocation may not open /dev/nvidia*: were GPUs asked for?")
	default:
		e.Hint("run nvidia-smi on the node; resources = { gpu = 0 } in the pool uses it without GPUs")
	}
	return e
}
