//go:build race

package agent

import "time"

// slack is what the race detector costs on top of a promised time.
const slack = 25 * time.Second
