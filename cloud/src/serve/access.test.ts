import { openLog } from '@frameloop/kit/log'
import type { Pool } from '@frameloop/kit/postgres'
import { expect, test } from 'vitest'
import { addKey, allow, Bucket, type Caller, everything, type HeldSocket, KeyAccess, within } from './access.ts'

const caller = (scope: Partial<Caller['scope']>): Caller => ({ keyId: 'k', scope: { ...everything, ...scope }, take: () => {} })

test('a scope lets through what it names, or everything where it names nothing', () => {
  const some = caller({ verbs: ['predict'], cameras: ['door'], tasks: ['occupancy'] })
  expect(() => allow(some, 'predict', { camera: 'door', task: 'occupancy' })).not.toThrow()
  expect(() => allow(caller({}), 'feeds', { camera: 'any', task: 'any' })).not.toThrow()
  expect(() => allow(some, 'feeds')).toThrow('The key k does not reach feeds')
  expect(() => allow(some, 'predict', { camera: 'gate' })).toThrow('camera gate')
  expect(() => allow(some, 'predict', { task: 'other' })).toThrow('task other')
})

test('what is asked for and allowed: all that is allowed where nothing is named', () => {
  expect(within([], undefined)).toEqual([])
  expect(within([], ['a'])).toEqual(['a'])
  expect(within(['a', 'b'], undefined)).toEqual(['a', 'b'])
  expect(within(['a', 'b'], ['b', 'c'])).toEqual(['b'])
})

test("a second's worth may be asked at once, and no more than the rate for long", () => {
  const bucket = new Bucket(10, 0)
  const taken = (now: number): number => Array.from({ length: 50 }, () => bucket.take(1, now)).filter(Boolean).length
  expect([taken(0), taken(500), taken(500), taken(60_000)]).toEqual([10, 5, 0, 10])
})

test('a request for more than a second allows is let through once, after which it is paid for', () => {
  const bucket = new Bucket(10, 0)
  // the request itself, and what it asks for besides
  expect([bucket.take(1, 0), bucket.take(63, 0)]).toEqual([true, true])
  expect([bucket.take(1, 5_000), bucket.take(1, 5_600)]).toEqual([false, true])
  expect(bucket.take(63, 5_700)).toBe(false)
})

/** The two tables, as far as keys ask them. */
function fakePool() {
  const keys: { key_id: string; digest: Buffer; scope: unknown; rate: number | null }[] = []
  const tickets = new Map<string, { key_id: string; expires: number }>()
  const query = async (text: string, values: unknown[] = []): Promise<{ rows: unknown[] }> => {
    if (text.startsWith('insert into api_keys')) keys.push({ key_id: values[0] as string, digest: values[2] as Buffer, scope: values[3], rate: values[4] as number | null })
    else if (text.startsWith('insert into api_tickets'))
      tickets.set((values[0] as Buffer).toString('hex'), { key_id: values[1] as string, expires: Date.now() + (values[2] as number) })
    else if (text.startsWith('delete from api_tickets where digest')) {
      const digest = (values[0] as Buffer).toString('hex')
      const found = tickets.get(digest)
      tickets.delete(digest)
      return { rows: found ? [{ key_id: found.key_id, holds: found.expires > Date.now() }] : [] }
    } else if (text.startsWith('select')) return { rows: keys }
    return { rows: [] }
  }
  return { query, keys } as unknown as Pool & { readonly keys: { key_id: string }[] }
}

test('a key is known by its secret, a ticket holds once, and a revoked key holds no more', async () => {
  const pool = fakePool()
  const access = new KeyAccess(pool, openLog('test', 'silent'))
  const { key, keyId } = await addKey(pool, 'ours', { ...everything, cameras: ['door'] }, 2)
  await expect(access.callerOf(`Bearer ${key}`, undefined), 'before they were read').rejects.toMatchObject({ code: 'DATABASE_UNAVAILABLE' })
  await access.read()
  const known = await access.callerOf(`Bearer ${key}`, undefined)
  expect(known).toMatchObject({ keyId, scope: { cameras: ['door'] } })
  known.take()
  ;(await access.callerOf(`Bearer ${key}`, undefined)).take()
  expect(() => known.take()).toThrow('may ask 2 times a second')
  for (const wrong of [`Bearer ${key.slice(0, -1)}x`, 'Bearer fl_000000000000_x', 'Basic x', ''])
    await expect(access.callerOf(wrong, undefined)).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
  const { ticket } = await access.ticketFor(known)
  expect(await access.callerOf(undefined, ticket)).toMatchObject({ keyId })
  await expect(access.callerOf(undefined, ticket)).rejects.toThrow('The ticket was used, or has expired')
  await expect(access.callerOf(undefined, undefined)).rejects.toThrow('Send a key')
  const closed: number[] = []
  access.whileHeld(known, { on: () => {}, close: (code: number) => closed.push(code) } as unknown as HeldSocket)
  await access.read()
  expect(closed).toEqual([])
  pool.keys.splice(0)
  await access.read()
  expect(closed, 'sockets go with their key').toEqual([1008])
  await expect(access.callerOf(`Bearer ${key}`, undefined)).rejects.toThrow('unknown or was revoked')
})
