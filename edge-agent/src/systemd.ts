/** What a service manager wants to hear (sd_notify): ready, and again and again that the event loop still turns. */
import { spawn } from 'node:child_process'
import type { Log } from '@frameloop/kit/log'

/** Does nothing where no service manager listens. Returns how to stop. */
export function notifySystemd(log: Log, env: NodeJS.ProcessEnv = process.env): () => void {
  if (!env['NOTIFY_SOCKET']) return () => {}
  // Node has no datagram sockets in the file system; the program that comes with systemd has
  const say = (...words: string[]): void => {
    spawn('systemd-notify', words, { stdio: 'ignore' }).once('error', (error) => log.warn({ err: error }, 'the service manager could not be told'))
  }
  say('--ready', `MAINPID=${process.pid}`)
  const limit = Number(env['WATCHDOG_USEC'] ?? 0) / 1000
  const timer = limit > 0 ? setInterval(() => say('WATCHDOG=1'), limit / 3) : undefined
  return () => {
    clearInterval(timer)
    say('STOPPING=1')
  }
}
