package units

import "testing"

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int32{
		"TERM": 15, "SIGTERM": 15, "sigterm": 15, "9": 9, "64": 64, "RTMIN": 34, "RTMIN+4": 38, "SIGRTMIN+30": 64, "RTMAX": 64, "RTMAX-1": 63,
		"0": 0, "65": 0, "-1": 0, "": 0, "NOPE": 0, "RTMIN+31": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMINx": 0, "SIGSIGTERM": 0,
	} {
		if got, err := ParseSignal(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
}
