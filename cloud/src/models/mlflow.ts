/** MLflow 3 over its REST API: experiments, runs, artifacts, registered versions, aliases. */
import { Fault, rootMessage } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'
import type { ModelFiles } from './model-files.ts'

export interface Metric {
  readonly key: string
  readonly value: number
  readonly step?: number
}

export interface Mlflow {
  startRun(experiment: string, name: string, tags: Readonly<Record<string, string>>): Promise<{ readonly runId: string; readonly artifactUri: string }>
  log(runId: string, params: Readonly<Record<string, string>>, metrics: readonly Metric[]): Promise<void>
  putFiles(artifactUri: string, folder: string, files: ModelFiles): Promise<void>
  /** Throws `NOT_FOUND` where one of them is not there, `MLFLOW_UNAVAILABLE` for everything that may pass. */
  getFiles(artifactUri: string, folder: string, names: readonly string[]): Promise<ModelFiles>
  registerVersion(model: string, source: string, runId: string, tags: Readonly<Record<string, string>>): Promise<string>
  setAlias(model: string, alias: string, version: string): Promise<void>
  /** One that is not there counts as removed. */
  removeAlias(model: string, alias: string): Promise<void>
  endRun(runId: string, status: 'FINISHED' | 'FAILED'): Promise<void>
  /** What `/readyz` says of it: nothing when it answers. */
  notReady(): Promise<Readonly<Record<string, string>>>
}

/** Whether it may answer later. */
export const isMlflowAway = (thrown: unknown): boolean => thrown instanceof Fault && thrown.code === 'MLFLOW_UNAVAILABLE'

export function openMlflow(baseUrl: string): Mlflow {
  const base = baseUrl.replace(/\/+$/, '')
  const call = async (method: string, path: string, body?: string | Uint8Array, contentType = 'application/json'): Promise<Response> => {
    try {
      return await fetch(`${base}${path}`, { method, ...(body === undefined ? {} : { body, headers: { 'content-type': contentType } }), signal: AbortSignal.timeout(30_000) })
    } catch (thrown) {
      throw new Fault('MLFLOW_UNAVAILABLE', `MLflow did not answer: ${rootMessage(thrown)}`, { path }, thrown)
    }
  }
  const api = async <Answer>(path: string, body: unknown, tolerate?: string, method = 'POST'): Promise<Answer> => {
    const response = await call(method, `/api/2.0/mlflow/${path}`, JSON.stringify(body))
    const answer = (await response.json().catch(() => ({}))) as { error_code?: string; message?: string }
    // what a proxy in between says has no code at all
    if (!response.ok && (tolerate === undefined || answer.error_code !== tolerate))
      throw new Fault('MLFLOW_UNAVAILABLE', `MLflow answered ${response.status} to ${path}: ${answer.message ?? ''}`, { path, status: response.status })
    return answer as Answer
  }
  /** A body that breaks off is MLflow being away, as no answer is. */
  const whole = async <Body>(read: () => Promise<Body>): Promise<Body> => {
    try {
      return await read()
    } catch (thrown) {
      throw new Fault('MLFLOW_UNAVAILABLE', `MLflow's answer broke off: ${rootMessage(thrown)}`, {}, thrown)
    }
  }
  const artifactPath = (uri: string, folder: string, name: string): string => `/api/2.0/mlflow-artifacts/artifacts/${uri.replace(/^mlflow-artifacts:\/*/, '')}/${folder}/${name}`
  const now = (): EpochMs => Date.now()
  const list = (values: Readonly<Record<string, string>>) => Object.entries(values).map(([key, value]) => ({ key, value: value.slice(0, 6_000) }))
  return {
    async startRun(experiment, name, tags) {
      await api('experiments/create', { name: experiment }, 'RESOURCE_ALREADY_EXISTS')
      const found = await call('GET', `/api/2.0/mlflow/experiments/get-by-name?experiment_name=${encodeURIComponent(experiment)}`)
      const { experiment: known } = (await found.json()) as { experiment: { experiment_id: string } }
      const { run } = await api<{ run: { info: { run_id: string; artifact_uri: string } } }>('runs/create', {
        experiment_id: known.experiment_id,
        run_name: name,
        start_time: now(),
        tags: list(tags),
      })
      return { runId: run.info.run_id, artifactUri: run.info.artifact_uri }
    },
    async log(runId, params, metrics) {
      const stamped = metrics.filter(({ value }) => Number.isFinite(value)).map(({ key, value, step }) => ({ key, value, step: step ?? 0, timestamp: now() }))
      for (let at = 0; at === 0 || at < stamped.length; at += 900)
        await api('runs/log-batch', { run_id: runId, params: at === 0 ? list(params) : [], metrics: stamped.slice(at, at + 900) })
    },
    async putFiles(artifactUri, folder, files) {
      for (const [name, bytes] of files) {
        const response = await call('PUT', artifactPath(artifactUri, folder, name), bytes, 'application/octet-stream')
        if (!response.ok) throw new Fault('MLFLOW_UNAVAILABLE', `MLflow answered ${response.status} to the upload of ${name}`, { name })
      }
    },
    async getFiles(artifactUri, folder, names) {
      const files = new Map<string, Buffer>()
      for (const name of names) {
        const response = await call('GET', artifactPath(artifactUri, folder, name))
        if (!response.ok) {
          // what S3 does not have comes as an error of MLflow's own: 500, "An error occurred (404) when calling the HeadObject operation"
          const isMissing = response.status === 404 || /\(404\)|NoSuchKey/.test(await whole(() => response.text()))
          throw isMissing
            ? new Fault('NOT_FOUND', `MLflow has no ${name} in ${artifactUri}/${folder}`, { name })
            : new Fault('MLFLOW_UNAVAILABLE', `MLflow answered ${response.status} to the download of ${name}`, { name })
        }
        files.set(name, Buffer.from(await whole(() => response.arrayBuffer())))
      }
      return files
    },
    async registerVersion(model, source, runId, tags) {
      await api('registered-models/create', { name: model }, 'RESOURCE_ALREADY_EXISTS')
      const { model_version } = await api<{ model_version: { version: string } }>('model-versions/create', { name: model, source, run_id: runId, tags: list(tags) })
      return model_version.version
    },
    async setAlias(model, alias, version) {
      await api('registered-models/alias', { name: model, alias, version })
    },
    async removeAlias(model, alias) {
      await api('registered-models/alias', { name: model, alias }, 'RESOURCE_DOES_NOT_EXIST', 'DELETE')
    },
    async endRun(runId, status) {
      await api('runs/update', { run_id: runId, status, end_time: now() })
    },
    async notReady() {
      const answers = await fetch(`${base}/health`, { signal: AbortSignal.timeout(1_000) }).then(
        ({ ok }) => ok,
        () => false,
      )
      return answers ? {} : { mlflow: 'does not answer' }
    },
  }
}

/** Makes MLflow's page show the folder as a model with its signature; `shape` is [height, width, channels]. */
export function mlmodelFile(runId: string, shape: readonly number[], classes: number): Buffer {
  const tensor = (sides: readonly number[]): string => `'[{"type":"tensor","tensor-spec":{"dtype":"float32","shape":[${sides.join(',')}]}}]'`
  return Buffer.from(
    `artifact_path: model\nflavors:\n  onnx:\n    data: model.onnx\n    onnx_version: 1.16.0\n    onnx_ir_version: 8\n  tfjs:\n    format: layers-model\n    data: model.json\n    tfjs_version: 4.22.0\nmlflow_version: 3.17.2\nrun_id: ${runId}\nsignature:\n  inputs: ${tensor([-1, ...shape])}\n  outputs: ${tensor([-1, classes])}\n`,
  )
}
