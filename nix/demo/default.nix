# A small package set in the shape of nixpkgs that builds anywhere, offline, in a few seconds.
#
# All it needs of the machine is /bin/sh and mkdir, chmod, ln, cp, od, tr and sleep in /bin or
# /usr/bin.  No build runs a program for the platform that was asked for, so packages for
# aarch64-linux are really built on x86_64-linux, too.
{ system ? builtins.currentSystem, config ? { } }:
let
  inherit (builtins) dirOf elem head listToAttrs removeAttrs stringLength;

  machine = { x86_64-linux = "x86_64"; aarch64-linux = "aarch64"; }.${system} or null;
  programPlatforms = [ "x86_64-linux" "aarch64-linux" ];

  # As in nixpkgs, what meta says against a package is thrown when the package is evaluated, not
  # when it is looked at.
  mkPackage = { pname, version, script, outputs ? [ "out" ], meta ? { }, ... }@args:
    let
      name = "${pname}-${version}";
      drv = derivation (removeAttrs args [ "pname" "script" "meta" ] // {
        inherit name outputs;
        # whose programs build it; what it is for is decided by what the script writes
        system = builtins.currentSystem;
        builder = "/bin/sh";
        args = [ "-euc" script ];
        PATH = "/usr/bin:/bin";
      });
      supported = !(meta ? platforms) || elem system meta.platforms;
      insecure = (meta.knownVulnerabilities or [ ]) != [ ];
      problem =
        if meta.broken or false && !(config.allowBroken or false)
        then "is marked as broken"
        else if meta.unfree or false && !(config.allowUnfree or false)
        then "has an unfree license (‘unfree’)"
        else if insecure && !(elem name (config.permittedInsecurePackages or [ ]))
        then "is marked as insecure"
        else if !supported then "is not available on the requested hostPlatform ${system}"
        else null;
      checked = value: if problem == null then value else throw "Package ‘${name}’ ${problem}, refusing to evaluate.";
      output = name: { inherit name; value = drv.${name} // { drvPath = checked drv.drvPath; outPath = checked drv.${name}.outPath; }; };
    in
    drv // listToAttrs (map output outputs) // {
      inherit pname version;
      drvPath = checked drv.drvPath;
      outPath = checked drv.outPath;
      meta = { outputsToInstall = [ (head outputs) ]; unsupported = !supported; inherit insecure; available = problem == null; } // meta;
    };

  # A folder with one text in it.
  mkText = { pname, version, path, text, ... }@args: mkPackage (removeAttrs args [ "path" ] // {
    script = ''
      mkdir -p "$out/${dirOf path}"
      printf '%s\n' "$text" > "$out/${path}"
    '';
  });

  # A script that writes a program to the file `to`; the program prints the file `from`.
  program = { from, length ? stringLength from, to }: ''
    printf '${import ./program.nix { inherit machine length; }}' > "${to}"
    printf '%s\000' "${from}" >> "${to}"
    chmod +x "${to}"
  '';

  # A package with one program that prints a file of another package.
  mkProgram = { pname, version, from, meta ? { } }: mkPackage {
    inherit pname version;
    meta = { platforms = programPlatforms; mainProgram = pname; } // meta;
    script = ''
      mkdir -p "$out/bin"
      ${program { inherit from; to = "$out/bin/${pname}"; }}
    '';
  };

  # A package with one program that prints a file of its own, so it refers to itself.
  mkEditor = { pname, version, text, meta ? { } }: mkPackage {
    inherit pname version text;
    meta = { platforms = programPlatforms; mainProgram = "editor"; } // meta;
    script = ''
      mkdir -p "$out/bin" "$out/share/${pname}"
      printf '%s\n' "$text" > "$out/share/${pname}/text"
      ${program {
        from = "$out/share/${pname}/text";
        length = stringLength "${builtins.storeDir}/00000000000000000000000000000000-${pname}-${version}/share/${pname}/text";
        to = "$out/bin/editor";
      }}
    '';
  };

  # Real programs: the static busybox of the machine, where there is one and it fits.
  busyboxes = builtins.filter builtins.pathExists [ /bin/busybox /usr/bin/busybox ];
  withBusybox =
    if busyboxes == [ ] || system != builtins.currentSystem then { }
    else
      let
        busybox = mkPackage {
          pname = "busybox";
          version = "static";
          source = builtins.path { name = "busybox"; path = head busyboxes; };
          meta.mainProgram = "busybox";
          script = ''
            # e_phnum and the types of the program headers; 3 is PT_INTERP
            count=$(od -An -tu2 -j56 -N2 "$source" | tr -d ' ')
            i=0
            while [ $i -lt $count ]; do
              type=$(od -An -tu4 -j$((64 + 56 * i)) -N4 "$source" | tr -d ' ')
              if [ "$type" = 3 ]; then
                echo "the busybox of this machine is not static: install busybox-static" >&2
                exit 1
              fi
              i=$((i + 1))
            done
            mkdir -p "$out/bin"
            cp "$source" "$out/bin/busybox"
            chmod +x "$out/bin/busybox"
            for applet in $("$out/bin/busybox" --list); do
              [ "$applet" = busybox ] || ln -s busybox "$out/bin/$applet"
            done
          '';
        };
        # the names that the meta-package `shell` asks for
        pick = pname: applets: extra: mkPackage {
          inherit pname busybox applets;
          version = "busybox";
          script = ''
            mkdir -p "$out/bin"
            for applet in $applets; do
              [ ! -e "$busybox/bin/$applet" ] || ln -s "$busybox/bin/$applet" "$out/bin/$applet"
            done
            ${extra}
          '';
        };
      in
      {
        inherit busybox;
        bashInteractive = pick "bash-interactive" "sh ash" ''
          # busybox asks for its name, and "bash" is none that it knows
          printf '#!%s/bin/sh\nexec %s/bin/sh "$@"\n' "$busybox" "$busybox" > "$out/bin/bash"
          chmod +x "$out/bin/bash"
        '';
        coreutils = pick "coreutils" (toString [
          "[" "basename" "cat" "chmod" "chown" "cp" "cut" "date" "dd" "df" "dirname" "du" "echo" "env" "expr" "false"
          "head" "id" "ln" "ls" "md5sum" "mkdir" "mv" "nproc" "od" "printf" "pwd" "readlink" "realpath" "rm" "rmdir"
          "seq" "sha256sum" "sleep" "sort" "stat" "tail" "tee" "test" "touch" "tr" "true" "uname" "uniq" "wc" "whoami" "yes"
        ]) "";
      };
in
withBusybox // rec {
  # data that others share
  alphabet = mkText { pname = "alphabet"; version = "26"; path = "share/alphabet/letters"; text = "abcdefghijklmnopqrstuvwxyz"; };
  dictionary = mkText { pname = "dictionary"; version = "2024.1"; path = "share/dictionary/words"; text = "hello\nwelcome\n# letters: ${alphabet}"; };
  greeting = mkPackage {
    pname = "greeting";
    version = "1.2";
    inherit dictionary;
    script = ''
      mkdir -p "$out/share/greeting"
      echo "Hello, world!" > "$out/share/greeting/hello"
      echo "Welcome to the machine." > "$out/share/greeting/welcome"
      echo "$dictionary" > "$out/share/greeting/dictionary"
    '';
  };
  phrasebook = mkText { pname = "phrasebook"; version = "3.0"; path = "share/phrasebook/phrases"; text = "${greeting}/share/greeting\n${dictionary}/share/dictionary"; };

  # programs that run with nothing but their closure
  hello = mkProgram { pname = "hello"; version = "1.0"; from = "${greeting}/share/greeting/hello"; meta.description = "Says hello"; };
  welcome = mkProgram { pname = "welcome"; version = "1.0"; from = "${greeting}/share/greeting/welcome"; };
  lookup = mkProgram { pname = "lookup"; version = "0.4"; from = "${dictionary}/share/dictionary/words"; };

  # several outputs, of which two are installed
  toolbox = mkPackage {
    pname = "toolbox";
    version = "5.1";
    outputs = [ "out" "dev" "man" ];
    meta = { outputsToInstall = [ "out" "man" ]; platforms = programPlatforms; mainProgram = "toolbox"; };
    script = ''
      mkdir -p "$out/bin" "$dev/include" "$man/share/man/man1"
      ${program { from = "${phrasebook}/share/phrasebook/phrases"; to = "$out/bin/toolbox"; }}
      echo "/* $out */" > "$dev/include/toolbox.h"
      echo ".TH TOOLBOX 1" > "$man/share/man/man1/toolbox.1"
    '';
  };

  # two packages with one file name: the lower priority wins
  editor-small = mkEditor { pname = "editor-small"; version = "1.0"; text = "the small editor"; meta.priority = 4; };
  editor-large = mkEditor { pname = "editor-large"; version = "1.0"; text = "the large editor"; };

  # names that an image name cannot spell
  Upper = mkText { pname = "upper"; version = "1"; path = "share/upper"; text = "upper"; };
  _1name = mkText { pname = "1name"; version = "1"; path = "share/1name"; text = "one"; };
  demoPackages = {
    recurseForDerivations = true;
    inner = mkText { pname = "inner"; version = "1"; path = "share/inner"; text = "inner of ${alphabet}"; };
  };

  # what can go wrong
  broken = mkText { pname = "broken"; version = "1.0"; path = "share/broken"; text = "broken"; meta.broken = true; };
  unfree = mkText { pname = "unfree"; version = "1.0"; path = "share/unfree"; text = "unfree"; meta.unfree = true; };
  insecure = mkText { pname = "insecure"; version = "1.0"; path = "share/insecure"; text = "insecure"; meta.knownVulnerabilities = [ "it is made to be" ]; };
  unsupported = mkText { pname = "unsupported"; version = "1.0"; path = "share/unsupported"; text = "unsupported"; meta.platforms = [ "riscv64-linux" ]; };
  sleeps = mkPackage { pname = "sleeps"; version = "1.0"; script = "echo now I sleep; sleep 600; echo > \"$out\""; };
  fails = mkPackage { pname = "fails"; version = "1.0"; script = "echo about to fail; exit 3"; };
}
