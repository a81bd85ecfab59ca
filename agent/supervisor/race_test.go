//go:build race

package supervisor_test

import "time"

// goneBound is what "at once" may take; the race detector slows everything.
const goneBound = 5 * time.Second
