/** TF.js in WebAssembly, for machines on which nothing native loads. */
import { createRequire } from 'node:module'
import path from 'node:path'
import { setWasmPaths } from '@tensorflow/tfjs-backend-wasm'
import { loadLayersModel } from '@tensorflow/tfjs-layers'
import { openLayers } from './layers-network.ts'
import type { ModelContent } from './model-files.ts'
import type { Network } from './predictor.ts'

export function openTfjsWasmNetwork(content: ModelContent): Promise<Network> {
  setWasmPaths(`${path.dirname(createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm'))}/`)
  return openLayers(content, 'wasm', loadLayersModel)
}
