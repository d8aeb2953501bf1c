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
		hosts, resolv := Files("web", c.shared, c.hosts, c.resolv, Names{})
		if hosts != c.wantHosts || resolv != c.wantResolv {
			t.Errorf("%s: got %q and %q", c.name, hosts, resolv)
		}
	}
}

func TestNames(t *testing.T) {
	const hostHosts, hostResolv = "127.0.0.1 localhost web\n", "# c\nnameserver 9.9.9.9\ndomain old\nsearch a b\noptions ndots:3\noptions edns0\nsortlist x\n"
	base, empty := "7.7.7.7 base", ""
	for _, c := range []struct {
		shared              bool
		names               Names
		wantHosts, wantConf string
	}{
		{true, Names{Hosts: []string{"1.2.3.4\tdb"}}, "1.2.3.4\tdb\n127.0.0.1 localhost web\n", hostResolv},
		{false, Names{Hosts: []string{"1.2.3.4\tdb"}}, "1.2.3.4\tdb\n127.0.0.1\tlocalhost web\n::1\tlocalhost\n", ""},
		{true, Names{Base: &base}, "7.7.7.7 base\n127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\tweb\n", hostResolv},
		{false, Names{Base: &empty}, "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\tweb\n", ""},
		{true, Names{Servers: []string{"1.1.1.1", "::1"}}, hostHosts, "search a b\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:3 edns0\n"},
		{true, Names{Search: []string{"x", "y"}, Options: []string{"rotate"}}, hostHosts, "search x y\nnameserver 9.9.9.9\noptions rotate\n"},
		{true, Names{Search: []string{"."}}, hostHosts, "nameserver 9.9.9.9\noptions ndots:3 edns0\n"},
	} {
		hosts, conf := Files("web", c.shared, hostHosts, hostResolv, c.names)
		if hosts != c.wantHosts || conf != c.wantConf {
			t.Errorf("%+v: got %q and %q", c.names, hosts, conf)
		}
	}
	for in, want := range map[string]string{"a:1.2.3.4": "1.2.3.4\ta", "a;b:::1": "::1\ta b", "a": "", "a:b": "", "a:[::1]": "", ":1.1.1.1": "", "a;:1.1.1.1": "", "a b:1.1.1.1": "", "a\n:1.1.1.1": "",
		"a#:1.1.1.1": "", "a:host-gateway": ""} {
		if got, err := ParseHost(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ParseHost(%q): %q, %v", in, got, err)
		}
	}
	for in, valid := range map[string]bool{"ndots:2": true, "a.b": true, ".": true, "": false, "a b": false, "a\nb": false, "ä": false, "a#": false} {
		if (ParseWord(in) == nil) != valid {
			t.Errorf("ParseWord(%q): %v", in, ParseWord(in))
		}
	}
	if ParseServer("bad") == nil || ParseServer("::1") != nil {
		t.Error("ParseServer")
	}
}
