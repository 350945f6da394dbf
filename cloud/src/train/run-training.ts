/** One training run from its request to a registered version and, where it earned it, a promotion. */
import { Worker } from 'node:worker_threads'
import { Fault } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import { retry } from '@frameloop/kit/retry'
import type { Codec } from '@frameloop/schemas/codec'
import { bucketName, datasetKey } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import { channelsOf } from '@frameloop/stream-processors/features/prepare'
import { pixelWork } from '@frameloop/stream-processors/pixels/pixel-work'
import { isMlflowAway, type Mlflow, mlmodelFile } from '../models/mlflow.ts'
import { type ModelFiles, metaOf, modelFileNames } from '../models/model-files.ts'
import { mayReplace, unlessDecided } from '../models/promote.ts'
import { decideRoles, type ModelVersion, probationTime, recordPromotion, selectChampions } from '../models/roles.ts'
import { enqueue } from '../outbox.ts'
import { buildDataset } from './dataset.ts'
import { type FitJob, type FitMessage, hyperparameters } from './fit.ts'
import { compareLive, sayDifferent } from './live-sample.ts'
import { splitByPassage } from './split.ts'

export interface TrainingTools {
  readonly pool: Pool
  readonly brokers: string
  readonly codec: Codec
  readonly store: ObjectStore
  readonly bucketPrefix: string
  readonly mlflow: Mlflow
  readonly log: Log
}

/** A claimed row of training_runs. */
export interface TrainingRequest {
  readonly request_id: string
  readonly task: string
  readonly cause: string
  readonly requested_by: string
  readonly camera_id: string | null
  readonly from_offset_us: number | null
  readonly until_offset_us: number | null
  readonly from_time: Date | null
  readonly until_time: Date | null
  readonly seed: number
  readonly force_promote: boolean
}

type Done = Extract<FitMessage, { kind: 'done' }>

function fitInWorker(job: FitJob, onEpoch: (epoch: number, loss: number) => void, signal: AbortSignal): Promise<Done> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL('./fit.mjs', import.meta.url), { workerData: job })
    const stop = (): void => void worker.terminate()
    signal.addEventListener('abort', stop, { once: true })
    let done: Done | undefined
    worker.on('message', (message: FitMessage) => {
      if (message.kind === 'epoch') onEpoch(message.epoch, message.loss)
      else done = message
    })
    worker.once('error', reject)
    worker.once('exit', (code) => {
      signal.removeEventListener('abort', stop)
      if (done) resolve(done)
      else reject(new Fault('RUN_FAILED', `The training worker ended with code ${code} and no model`))
    })
  })
}

async function selectChampion(pool: Pool, task: string): Promise<{ version: string; artifact_path: string; digest: string } | undefined> {
  const { rows } = await pool.query<{ version: string; artifact_path: string; digest: string }>(
    "select m.version, m.artifact_path, m.digest from roles_now r join model_versions m on m.task = r.task and m.version = r.version where r.task = $1 and r.alias = 'champion'",
    [task],
  )
  return rows[0]
}

/** Undefined for a champion whose files are gone for good. Whoever cannot be compared with because MLflow is away is not replaced: the run fails. */
async function championFilesOf(mlflow: Mlflow, artifactPath: string, signal: AbortSignal): Promise<ModelFiles | undefined> {
  try {
    return await retry(() => mlflow.getFiles(artifactPath, 'model', modelFileNames), { backoff: { first: 500, cap: 5_000 }, attempts: 8, isTransient: isMlflowAway }, signal)
  } catch (thrown) {
    if (thrown instanceof Fault && thrown.code === 'NOT_FOUND') return undefined
    throw thrown
  }
}

/** Zones of the task that one model has learned about and the other has not. */
async function placesLeftOut(pool: Pool, task: string, before: ModelFiles, now: ReadonlyMap<string, Uint8Array>): Promise<string[]> {
  const { rows } = await pool.query<{ place: string }>("select camera_id || ' ' || zone as place from zones where task = $1", [task])
  const [there, learned] = [new Set(rows.map(({ place }) => place)), new Set(metaOf(now).references)]
  return metaOf(before).references.filter((place) => there.has(place) && !learned.has(place))
}

export async function runTraining(request: TrainingRequest, tools: TrainingTools, signal: AbortSignal): Promise<void> {
  const { pool, mlflow, log } = tools
  const dataset = await buildDataset(
    pool,
    tools.brokers,
    tools.codec,
    tools.store,
    {
      task: request.task,
      cameraId: request.camera_id,
      fromOffsetUs: request.from_offset_us,
      untilOffsetUs: request.until_offset_us,
      fromTime: request.from_time?.getTime() ?? null,
      untilTime: request.until_time?.getTime() ?? null,
    },
    signal,
  )
  if (dataset.examples.length === 0) throw new Fault('DATASET_EMPTY', `No labelled frame of task ${request.task} lies in the range asked for`)
  if (dataset.classes.length < 2)
    throw new Fault('DATASET_EMPTY', `All ${dataset.examples.length} labelled examples of task ${request.task} say ${dataset.classes[0]}; a model needs at least two classes`)
  const split = splitByPassage(dataset.examples)
  const bucket = bucketName(tools.bucketPrefix, 'datasets')
  await tools.store.putOnce({ bucket, key: datasetKey(dataset.digest), body: Buffer.from(dataset.manifest), contentType: 'application/json' }, signal).catch((thrown: unknown) => {
    // the same content was read from other offsets before: the first manifest stands
    if (!(thrown instanceof Fault && thrown.code === 'OBJECT_CONFLICT')) throw thrown
  })
  const counts = Object.fromEntries(dataset.classes.map((name) => [name, dataset.examples.filter(({ label }) => label === name).length]))
  await pool.query('insert into datasets (digest, task, bucket, object_key, items, summary, cut_at) values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing', [
    dataset.digest,
    request.task,
    bucket,
    datasetKey(dataset.digest),
    dataset.examples.length,
    { classes: counts, train: split.train.length, heldOut: split.heldOut.length, judged: split.judged, notJudged: split.notJudged },
    new Date(dataset.cutAt),
  ])
  const run = await mlflow.startRun(`frameloop/${request.task}`, `${request.task} ${new Date().toISOString()}`, {
    'mlflow.user': request.requested_by || request.cause,
    'mlflow.source.name': 'frameloop train',
    cause: request.cause,
    dataset: dataset.digest,
  })
  try {
    await mlflow.log(
      run.runId,
      {
        ...Object.fromEntries(Object.entries(hyperparameters).map(([key, value]) => [key, String(value)])),
        seed: String(request.seed),
        preprocessing: dataset.preprocessingDigest,
        ...Object.fromEntries(Object.entries(dataset.preprocessing).map(([key, value]) => [`preprocessing.${key}`, String(value)])),
        dataset: dataset.digest,
        examples: String(dataset.examples.length),
        train: String(split.train.length),
        heldOut: String(split.heldOut.length),
        notJudged: split.notJudged.join(', ') || 'none',
      },
      [],
    )
    await pool.query("update training_runs set state = 'training', run_id = $2, dataset_digest = $3, epochs = $4 where request_id = $1", [
      request.request_id,
      run.runId,
      dataset.digest,
      hyperparameters.epochs,
    ])
    const champion = await selectChampion(pool, request.task)
    const championFiles = champion && (await championFilesOf(mlflow, champion.artifact_path, signal))
    const curve: { key: string; value: number; step: number }[] = []
    const done = await fitInWorker(
      {
        task: request.task,
        examples: dataset.examples,
        train: split.train,
        heldOut: split.heldOut,
        classes: dataset.classes,
        preprocessing: dataset.preprocessing,
        referencePictures: dataset.referencePictures,
        datasetDigest: dataset.digest,
        cutAt: new Date(dataset.cutAt).toISOString(),
        seed: request.seed,
        epochs: hyperparameters.epochs,
        ...(champion && championFiles ? { champion: { files: championFiles, digest: champion.digest } } : {}),
      },
      (epoch, loss) => {
        curve.push({ key: 'loss', value: loss, step: epoch })
        pool
          .query('update training_runs set epoch = $2, loss = $3 where request_id = $1', [request.request_id, epoch, loss])
          .catch((thrown: unknown) => log.warn({ err: thrown }, 'progress not recorded'))
      },
      signal,
    )
    const { evaluation } = done
    const zoneMetrics = Object.entries(evaluation.perZone).flatMap(([zone, figures]) => {
      const name = zone.replaceAll(' ', '/')
      return [
        { key: `${name}/accuracy`, value: figures.accuracy },
        { key: `${name}/balanced_accuracy`, value: figures.balancedAccuracy },
        { key: `${name}/majority_accuracy`, value: figures.majorityAccuracy },
        ...Object.entries(figures.precision).map(([label, value]) => ({ key: `${name}/precision/${label}`, value })),
        ...Object.entries(figures.recall).map(([label, value]) => ({ key: `${name}/recall/${label}`, value })),
      ]
    })
    await mlflow.log(run.runId, { device: done.device }, [
      ...curve,
      { key: 'balanced_accuracy', value: evaluation.balancedAccuracy },
      { key: 'accuracy', value: evaluation.accuracy },
      ...zoneMetrics,
    ])
    const stored = new Map<string, Buffer>([...done.files].map(([name, bytes]) => [name, Buffer.from(bytes)]))
    stored.set('MLmodel', mlmodelFile(run.runId, [dataset.preprocessing.height, dataset.preprocessing.width, channelsOf(dataset.preprocessing)], dataset.classes.length))
    await mlflow.putFiles(run.artifactUri, 'model', stored)
    await mlflow.putFiles(
      run.artifactUri,
      'dataset',
      new Map([
        ['manifest.json', Buffer.from(dataset.manifest)],
        ['evaluation.json', Buffer.from(JSON.stringify(evaluation, null, 2))],
      ]),
    )
    // before anything is registered: where the object store is away the run fails, and leaves no version that nobody knows
    const live = await compareLive(pool, tools.store, pixelWork, request.task)
    const modelName = `frameloop-${request.task}`
    const version = await mlflow.registerVersion(modelName, `${run.artifactUri}/model`, run.runId, {
      digest: done.digest,
      dataset: dataset.digest,
      preprocessing: dataset.preprocessingDigest,
    })
    await mlflow.endRun(run.runId, 'FINISHED')
    const compared = championFiles ? (done.championEvaluation ?? 'not comparable') : champion && 'gone'
    // one of another preprocessing answers for nothing that is prepared now
    const unlearned = championFiles && done.championEvaluation ? await placesLeftOut(pool, request.task, championFiles, done.files) : []
    const judged = mayReplace(evaluation, compared, request.force_promote, sayDifferent(live), unlearned)
    const model: ModelVersion = {
      task: request.task,
      version,
      modelName,
      runId: run.runId,
      digest: done.digest,
      artifactPath: run.artifactUri,
      preprocessing: dataset.preprocessingDigest,
      datasetDigest: dataset.digest,
    }
    const verdict = await decideRoles(pool, request.task, async (client) => {
      const [now] = await selectChampions(client, request.task)
      const verdict = unlessDecided(judged, champion?.version, now, request.force_promote)
      await client.query(
        'insert into model_versions (task, version, model_name, run_id, digest, artifact_path, preprocessing, dataset_digest, cut_at, metrics, preprocessing_parameters, reference_pictures) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)',
        [
          request.task,
          version,
          modelName,
          run.runId,
          done.digest,
          run.artifactUri,
          dataset.preprocessingDigest,
          dataset.digest,
          new Date(dataset.cutAt),
          evaluation,
          dataset.preprocessing,
          dataset.referencePictures,
        ],
      )
      // who forces it insists on it
      const role = { alias: 'champion', ...(request.force_promote ? {} : { probation: probationTime }) } as const
      if (verdict.promote) await recordPromotion(client, model, role, request.requested_by || request.cause, verdict.reason)
      await client.query("update training_runs set state = 'succeeded', version = $2, metrics = $3, promoted = $4, reason = $5, ended_at = now() where request_id = $1", [
        request.request_id,
        version,
        evaluation,
        verdict.promote,
        verdict.reason,
      ])
      await enqueue(client, topics.trainingEnded, request.task, request.request_id, {
        requestId: request.request_id,
        task: request.task,
        runId: run.runId,
        version,
        state: 'succeeded',
        promoted: verdict.promote,
        reason: verdict.reason,
        datasetDigest: dataset.digest,
        balancedAccuracy: evaluation.balancedAccuracy,
        endedAt: Date.now(),
      })
      return verdict
    })
    log.info({ task: request.task, version, promoted: verdict.promote, reason: verdict.reason, balancedAccuracy: evaluation.balancedAccuracy }, 'training ended')
  } catch (thrown) {
    await mlflow.endRun(run.runId, 'FAILED').catch(() => {})
    throw thrown
  }
}
