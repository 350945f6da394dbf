import { expect, test } from 'vitest'
import { paintScene, sceneChanges, sceneHeight, sceneWidth, truthAt } from './scene.ts'

test('the same seed and moment give the same picture and the same truth', () => {
  expect(Buffer.from(paintScene(7, 12_345, 'day')).equals(Buffer.from(paintScene(7, 12_345, 'day')))).toBe(true)
  expect(truthAt(7, 12_345)).toEqual(truthAt(7, 12_345))
})

test('every zone is both empty and occupied within the first minute, for any of these seeds', () => {
  for (const seed of [1, 2, 3, 7, 42]) {
    const seen = new Map<string, Set<string>>()
    for (let t = 0; t < 60_000; t += 200) for (const { zone, label } of truthAt(seed, t)) seen.set(zone, (seen.get(zone) ?? new Set()).add(label))
    expect(
      [...seen].map(([zone, labels]) => [zone, labels.size]),
      `seed ${seed}`,
    ).toEqual(
      expect.arrayContaining([
        ['crossing', 2],
        ['parking-bay', 2],
        ['doorway', 2],
      ]),
    )
  }
})

test('night, rain and the rest change the picture and not the truth', () => {
  const day = Buffer.from(paintScene(7, 20_000, 'day'))
  for (const change of sceneChanges.filter((known) => known !== 'day' && known !== 'new-kind')) {
    const picture = Buffer.from(paintScene(7, 20_000, change))
    expect(picture).toHaveLength(sceneWidth * sceneHeight * 3)
    expect(picture.equals(day), change).toBe(false)
    expect(truthAt(7, 20_000, change)).toEqual(truthAt(7, 20_000))
  }
})
