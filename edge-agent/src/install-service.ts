/** The agent as a systemd service: started with the machine, restarted when it ends or hangs, with no more rights than it needs. */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { Fault, toError } from '@frameloop/kit/fault'
import { parse } from 'yaml'
import type { AgentSettings } from './config.ts'

export interface ServiceFlags {
  readonly user: string
}

const environmentFile = (configFile: string): string => join(dirname(configFile), 'agent.env')
const unitFile = '/etc/systemd/system/frameloop-agent.service'

export function unitOf(configFile: string, config: AgentSettings, { user }: ServiceFlags): string {
  const usesDevices = config.cameras.some(({ address }) => address.startsWith('v4l2:'))
  return `[Unit]
Description=frameloop agent: captures from cameras and delivers every frame
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
WatchdogSec=60
ExecStart=${process.execPath} ${realpathSync(process.argv[1] ?? '')} run --config ${configFile}
Restart=always
RestartSec=2
# a full spool is read before it is ready, which takes minutes from a slow card
TimeoutStartSec=infinity
TimeoutStopSec=15
KillMode=mixed
User=${user}
EnvironmentFile=-${environmentFile(configFile)}
${usesDevices ? 'SupplementaryGroups=video\n' : ''}LimitNOFILE=8192
MemoryHigh=1G
ReadWritePaths=${config.spool.folder}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
${usesDevices ? 'DeviceAllow=char-video4linux rw\n' : 'PrivateDevices=yes\n'}NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
`
}

/** What the references of a configuration lead to, by the pattern of the one kind or the other; its comments aside. */
function referencesIn(config: string, pattern: RegExp): string[] {
  const texts = (value: unknown): string[] => (typeof value === 'string' ? [value] : typeof value === 'object' && value !== null ? Object.values(value).flatMap(texts) : [])
  return texts(parse(config)).flatMap((text) => [...text.matchAll(pattern)].map(([, name = '']) => name))
}

/** Environment variables that a configuration names. */
export function namesIn(config: string): string[] {
  return [...new Set(referencesIn(config, /\$\{(?!file:)([^}]+)\}/g))].sort()
}

/** Files that a configuration reads: what `${file:…}` names, and certificates. */
export function filesIn(config: string, { kafka }: Pick<AgentSettings, 'kafka'>): string[] {
  return [...new Set([...referencesIn(config, /\$\{file:([^}]+)\}/g), ...Object.values(kafka.tls ?? {})])].sort()
}

/** One line of an environment file (systemd.exec, `EnvironmentFile=`). */
export const environmentLine = (name: string, value: string): string => `${name}="${value.replace(/[\\"]/g, '\\$&')}"\n`

/**
 * Keeps what the configuration takes from the environment where the service finds it, readable by root only. What is there
 * already stays. Returns the names that are in neither.
 */
function keepEnvironment(configFile: string): readonly string[] {
  const file = environmentFile(configFile)
  const kept = existsSync(file) ? readFileSync(file, 'utf8').replace(/(?<=[^\n])$/, '\n') : ''
  const missing = namesIn(readFileSync(configFile, 'utf8')).filter((name) => !new RegExp(`^${name}=`, 'm').test(kept))
  const known = missing.filter((name) => process.env[name] !== undefined)
  if (known.length > 0) writeFileSync(file, kept + known.map((name) => environmentLine(name, process.env[name] ?? '')).join(''), { mode: 0o600 })
  return missing.filter((name) => !known.includes(name))
}

/** Needs root. Returns what was done and what comes next. */
export async function installService(configFile: string, config: AgentSettings, flags: ServiceFlags): Promise<string> {
  const run = promisify(execFile)
  try {
    await run('systemctl', ['--version'])
  } catch (thrown) {
    throw new Fault('TOOL_MISSING', 'There is no systemd here; `frameloop-agent install-service --print` shows the unit', {}, thrown)
  }
  let missing: readonly string[]
  const unreadable: string[] = []
  try {
    missing = keepEnvironment(configFile)
    await run('id', [flags.user]).catch(() => run('useradd', ['--system', '--home-dir', '/nonexistent', '--shell', '/usr/sbin/nologin', flags.user]))
    await run('install', ['-d', '-o', flags.user, '-m', '0700', config.spool.folder])
    // what was captured by hand before is the service's too
    await run('chown', ['-R', flags.user, config.spool.folder])
    await run('chown', [flags.user, configFile])
    writeFileSync(unitFile, unitOf(configFile, config, flags))
    await run('systemctl', ['daemon-reload'])
    for (const path of filesIn(readFileSync(configFile, 'utf8'), config)) await run('runuser', ['-u', flags.user, '--', 'test', '-r', path]).catch(() => void unreadable.push(path))
    await run('systemctl', ['enable', ...(missing.length + unreadable.length === 0 ? ['--now'] : []), 'frameloop-agent'])
  } catch (thrown) {
    const why = process.getuid?.() === 0 ? '' : '; it must be done as root'
    throw new Fault('CONFIG_INVALID', `The service could not be installed: ${toError(thrown).message}${why}`, {}, thrown)
  }
  const next = `  journalctl -u frameloop-agent -f\n  sudo frameloop-agent status --config ${configFile}`
  const kept = `put ${missing.join(', ')} into ${environmentFile(configFile)} (NAME="value", readable by root only)`
  if (unreadable.length > 0)
    return `installed ${unitFile}; it is not started yet: ${flags.user} may not read ${unreadable.join(', ')}\n  sudo chown ${flags.user} ${unreadable.join(' ')}\n${missing.length > 0 ? `  ${kept}\n` : ''}  sudo systemctl start frameloop-agent\n${next}`
  if (missing.length === 0) return `installed ${unitFile} and started it\n${next}`
  return `installed ${unitFile}; it is not started yet: ${kept}, then\n  sudo systemctl start frameloop-agent\n${next}`
}
