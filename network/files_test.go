package network

import "testing"

func TestFiles(t *testing.T) {
	for _, c := range []struct {
		name          string
		shared        bool
		hosts, resolv string
		wantHosts     string
		wantResolv    string
	}{
		{"no network", false, "10.0.0.1 db\n", "nameserver 10.0.0.53\n", "127.0.0.1\tlocalhost web\n::1\tlocalhost\n", ""},
		{"the host's, and itself", true, "127.0.0.1 localhost", "nameserver 10.0.0.53\n",
			"127.0.0.1 localhost\n127.0.0.1\tweb\n", "nameserver 10.0.0.53\n"},
		{"the host names it already", true, "192.0.2.7 www web # web server\n", "", "192.0.2.7 www web # web server\n", ""},
		{"only a comment names it", true, "# web\n", "", "# web\n127.0.0.1\tweb\n", ""},
		{"the host has no file", true, "", "", "127.0.0.1\tweb\n", ""},
	} {
		hosts, resolv := Files("web", c.shared, c.hosts, c.resolv)
		if hosts != c.wantHosts || resolv != c.wantResolv {
			t.Errorf("%s: got %q and %q", c.name, hosts, resolv)
		}
	}
}
