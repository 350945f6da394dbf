/** What frameloop needs from the machine, how to see whether it is there, and the command that brings it. No dependencies. */
import { execFileSync } from 'node:child_process'

function ask(program, args) {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 20_000 })
  } catch (thrown) {
    return thrown.stdout || thrown.stderr || undefined
  }
}

function version(text, pattern) {
  return text === undefined ? undefined : pattern.exec(text)?.[1]
}

function atLeast(found, wanted) {
  const a = found.split('.').map(Number)
  const b = wanted.split('.').map(Number)
  for (let at = 0; at < b.length; at += 1) if ((a[at] ?? 0) !== b[at]) return (a[at] ?? 0) > b[at]
  return true
}

/** What only the tests install is made for a later Python. */
const leastPython = (tests) => (tests ? '3.11' : '3.10')

/** The Python that is used: PYTHON, else the first of the usual names that is new enough, for the tests too where there is one. */
export function findPython() {
  return pythonFrom(leastPython(true)) ?? pythonFrom(leastPython(false))
}

function pythonFrom(least) {
  for (const name of [process.env.PYTHON, 'python3', 'python3.13', 'python3.12', 'python3.11', 'python3.10'].filter(Boolean)) {
    const found = version(ask(name, ['--version']), /Python (\d+\.\d+(?:\.\d+)?)/)
    if (found && atLeast(found, least) && ask(name, ['-c', 'import venv, ensurepip; print("ok")'])?.includes('ok')) return { name, version: found }
  }
  return undefined
}

const nodeVersion = process.versions.node

/** name, why, found version or undefined, commands by platform. `tests` marks what only the tests need. */
export function prerequisites({ tests = false } = {}) {
  const all = [
    { name: 'Node.js >= 20.19', why: 'runs frameloop', found: atLeast(nodeVersion, '20.19') ? nodeVersion : undefined, apt: [], dnf: 'nodejs', brew: 'node@20' },
    {
      name: `Python >= ${leastPython(tests)} with venv`,
      why: 'MLflow, SeaweedFS, Java runtime',
      found: (tests ? pythonFrom(leastPython(true)) : findPython())?.version,
      apt: ['python3', 'python3-venv'],
      dnf: 'python3',
      brew: 'python@3.12',
    },
    {
      name: 'Java >= 17',
      why: 'runs Maven',
      found: (() => {
        // it says so on the error output
        const v = version(ask('sh', ['-c', 'java -version 2>&1']), /version "(\d+)/)
        return v && Number(v) >= 17 ? v : undefined
      })(),
      apt: ['default-jre-headless'],
      dnf: 'java-21-openjdk-headless',
      brew: 'openjdk',
    },
    { name: 'Maven', why: 'fetches Kafka and the schema registry', found: version(ask('mvn', ['-v']), /Apache Maven (\S+)/), apt: ['maven'], dnf: 'maven', brew: 'maven' },
    {
      name: 'C++ compiler and make',
      why: 'builds node-rdkafka and the TensorFlow addon',
      found: ask('make', ['--version']) && version(ask('c++', ['--version']), /(\d+\.\d+\.\d+)/),
      apt: ['g++', 'make'],
      dnf: 'gcc-c++ make',
      brew: '(xcode-select --install)',
    },
    {
      name: 'zlib and OpenSSL headers',
      why: 'Kafka compression and TLS',
      found: ask('sh', ['-c', 'echo "#include <zlib.h>\n#include <openssl/ssl.h>" | c++ -E -xc++ - >/dev/null 2>&1 && echo ok'])?.includes('ok')
        ? 'yes'
        : process.platform === 'darwin'
          ? 'yes'
          : undefined,
      apt: ['zlib1g-dev', 'libssl-dev', 'libzstd-dev'],
      dnf: 'zlib-devel openssl-devel libzstd-devel',
      brew: '',
    },
    {
      name: 'ffmpeg >= 5',
      why: 'cameras and clips',
      found: (() => {
        const v = version(ask('ffmpeg', ['-version']), /version n?(\d+(?:\.\d+)*)/)
        return v && atLeast(v, '5') ? v : undefined
      })(),
      apt: ['ffmpeg'],
      dnf: 'ffmpeg-free',
      brew: 'ffmpeg',
    },
  ]
  if (tests) {
    const chromium = ['chromium', 'chromium-browser', 'google-chrome'].map((name) => version(ask(name, ['--version']), /(\d+\.\d+)/)).find(Boolean)
    all.push({
      name: 'Chromium',
      why: 'tests of the page (tests only)',
      found: chromium ?? (process.platform === 'darwin' ? 'not checked' : undefined),
      apt: ['chromium'],
      dnf: 'chromium',
      brew: '--cask chromium',
    })
    const gst = ask('/usr/bin/python3', ['-c', "import gi; gi.require_version('GstRtspServer','1.0'); from gi.repository import GstRtspServer; print('ok')"])?.includes('ok')
    all.push({
      name: 'gst-rtsp-server for Python',
      why: 'the stand-in RTSP camera (tests only)',
      found: gst ? 'yes' : undefined,
      apt: ['python3-gi', 'gir1.2-gst-rtsp-server-1.0', 'gstreamer1.0-plugins-good', 'gstreamer1.0-plugins-bad'],
      dnf: 'python3-gobject gstreamer1-rtsp-server gstreamer1-plugins-good gstreamer1-plugins-bad-free',
      brew: 'gst-rtsp-server pygobject3',
    })
  }
  return all
}

/** The table that `doctor` and a failing set-up print. */
export function prerequisiteTable(rows) {
  const wide = Math.max(...rows.map(({ name }) => name.length))
  return rows.map(({ name, found, why }) => `  ${found ? 'ok     ' : 'MISSING'}  ${name.padEnd(wide)}  ${found ?? `needed: ${why}`}`).join('\n')
}

export function installCommands(missing) {
  const apt = missing.flatMap((row) => row.apt)
  return [
    `  Debian, Ubuntu:  ${apt.length > 0 ? `sudo apt-get install -y ${apt.join(' ')}` : '(nothing of its packages)'}${missing.some(({ name }) => name.startsWith('Node')) ? '; a newer Node.js from https://nodejs.org' : ''}`,
    `  Fedora:          sudo dnf install -y ${missing
      .map((row) => row.dnf)
      .filter(Boolean)
      .join(' ')}`,
    `  macOS:           brew install ${missing
      .map((row) => row.brew)
      .filter(Boolean)
      .join(' ')}`,
  ].join('\n')
}

/** `frameloop doctor`: prints what is needed and how to install what is missing. Returns whether all of it is there. */
export function doctor() {
  const rows = prerequisites({ tests: true })
  const missing = rows.filter(({ found }) => !found)
  process.stdout.write(`${prerequisiteTable(rows)}\n${missing.length > 0 ? `\nInstall what is missing with one of\n${installCommands(missing)}\n` : ''}`)
  return missing.length === 0
}
